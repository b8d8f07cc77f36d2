// As much of CUDA's runtime as ci/gpu/graphs.cpp and launch_graphs.cpp use, for a GPU whose clock is moved by the program.
#pragma once

#include <cstddef>

enum cudaError_t { cudaSuccess = 0, cudaErrorNotReady = 600, cudaErrorGraphExecUpdateFailure = 910 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeRelaxed = 2 };
constexpr unsigned cudaEventRecordExternal = 1;

struct cudaGraphExecUpdateResultInfo {};
typedef struct fake_stream * cudaStream_t;
typedef struct fake_event *  cudaEvent_t;
typedef struct fake_graph *  cudaGraph_t;
typedef struct fake_exec *   cudaGraphExec_t;
typedef struct fake_node *   cudaGraphNode_t;

extern "C" {
cudaError_t cudaEventCreate(cudaEvent_t * event);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float * ms, cudaEvent_t start, cudaEvent_t end);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t * graph);
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t * nodes, size_t * n_nodes);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t * exec, cudaGraph_t graph, unsigned long long flags);
cudaError_t cudaGraphExecUpdate(cudaGraphExec_t exec, cudaGraph_t graph, cudaGraphExecUpdateResultInfo * info);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);

// not CUDA's: a kernel that is captured, and the GPU's clock, which is moved by the time that it does nothing
void fake_kernel(cudaStream_t stream, double ms);
void fake_wait(double ms);
}

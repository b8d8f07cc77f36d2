#include "cuda_runtime_api.h"

#include <vector>

struct fake_event { double ms = -1.0; };
struct fake_node  { cudaEvent_t event; double ms; };
struct fake_graph { std::vector<fake_node> nodes; };
struct fake_exec  { cudaGraph_t graph; };

static double      clock_ms  = 0.0;
static cudaGraph_t capturing = nullptr;

extern "C" {
cudaError_t cudaEventCreate(cudaEvent_t * event) { *event = new fake_event; return cudaSuccess; }
cudaError_t cudaEventDestroy(cudaEvent_t event) { delete event; return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) { event->ms = clock_ms; return cudaSuccess; }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t, unsigned) {
    capturing->nodes.push_back({ event, 0.0 });
    return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) { return event->ms < 0.0 ? cudaErrorNotReady : cudaSuccess; }
cudaError_t cudaEventElapsedTime(float * ms, cudaEvent_t start, cudaEvent_t end) { *ms = end->ms - start->ms; return cudaSuccess; }
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) { capturing = new fake_graph; return cudaSuccess; }
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t * graph) { *graph = capturing; capturing = nullptr; return cudaSuccess; }
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *, size_t * n_nodes) { *n_nodes = graph->nodes.size(); return cudaSuccess; }
cudaError_t cudaGraphInstantiate(cudaGraphExec_t * exec, cudaGraph_t graph, unsigned long long) { *exec = new fake_exec { graph }; return cudaSuccess; }
cudaError_t cudaGraphExecUpdate(cudaGraphExec_t exec, cudaGraph_t graph, cudaGraphExecUpdateResultInfo *) { exec->graph = graph; return cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { delete exec; return cudaSuccess; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t) {
    for (auto & node : exec->graph->nodes) {
        clock_ms += node.ms;
        if (node.event) {
            node.event->ms = clock_ms;
        }
    }
    return cudaSuccess;
}
void fake_kernel(cudaStream_t, double ms) { capturing->nodes.push_back({ nullptr, ms }); }
void fake_wait(double ms) { clock_ms += ms; }
}

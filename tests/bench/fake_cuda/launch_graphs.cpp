// Launches a graph of 3 ms and one of 1 ms in turn, with 0.5 ms before the one and 0.25 ms before the other.
#include "cuda_runtime_api.h"

static cudaGraph_t capture(int n_kernels, double ms) {
    cudaGraph_t graph;
    cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeRelaxed);
    for (int i = 0; i < n_kernels; ++i) {
        fake_kernel(nullptr, ms);
    }
    cudaStreamEndCapture(nullptr, &graph);
    return graph;
}

int main() {
    cudaGraphExec_t verify;
    cudaGraphExec_t draft;
    cudaGraphInstantiate(&verify, capture(3, 1.0), 0);
    cudaGraphInstantiate(&draft,  capture(2, 0.5), 0);
    for (int i = 0; i < 12; ++i) {
        if (i == 6) { // the same graph once more, captured anew
            cudaGraphExecUpdate(draft, capture(2, 0.5), nullptr);
        }
        fake_wait(0.5);
        cudaGraphLaunch(verify, nullptr);
        fake_wait(0.25);
        cudaGraphLaunch(draft, nullptr);
    }
    cudaGraphExecDestroy(verify);
    cudaGraphExecDestroy(draft);
}

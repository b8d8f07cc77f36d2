// Writes down when every CUDA graph of a process began and ended on the GPU, for kernels.py --idle. Nothing records beside the GPU:
// each graph is captured with an event as its first node and one as its last, so launches take as long as without.
//
//   g++ -O2 -fPIC -shared -Wl,-z,lazy ci/gpu/graphs.cpp -o libgraphs.so -I CUDA/include
//   LD_PRELOAD=$PWD/libgraphs.so GRAPHS_OUT=FOLDER/name PROGRAM ...
//
// PROGRAM has to load libcudart.so, and a graph to have ended when it is launched again (of others the last launch alone is told).
// Each process that captures a graph writes name.PID.txt, in the form of kernels.cpp:
//
//   # command line
//   G start duration nodes launch 0           times in ns; a graph is known by the number of its nodes
//
// What runs outside of graphs (copies between them, a graph that is not captured yet) is not told, and counts as idle.

#include "record.h"

#include <cuda_runtime_api.h>

#include <dlfcn.h>

#include <chrono>
#include <mutex>
#include <unordered_map>

namespace {

struct graph_events {
    cudaEvent_t start   = nullptr;
    cudaEvent_t end     = nullptr;
    size_t      n_nodes = 0;
};

struct launched_graph {
    graph_events events;
    bool         is_running = false;
};

// events are told in ms of 32 bits: precise enough only beside an event of less than some seconds before
struct time_base {
    cudaEvent_t event = nullptr;
    double      ms    = 0.0;
};

using clock_type = std::chrono::steady_clock;

std::mutex                                            mutex;
std::unordered_map<cudaStream_t, cudaEvent_t>         started;  // graphs that are being captured
std::unordered_map<cudaGraph_t, graph_events>         captured;
std::unordered_map<cudaGraphExec_t, launched_graph>   launched;
time_base                                             base;
cudaEvent_t                                           next_base = nullptr;
clock_type::time_point                                t_next_base;
FILE *                                                out       = nullptr;
unsigned                                              n_written = 0;

template <typename T> T * next_of(T *, const char * name) {
    return (T *) dlsym(RTLD_NEXT, name);
}

#define NEXT(function) static const auto next = next_of(function, #function)

void move_base(cudaStream_t stream) {
    if (next_base && cudaEventQuery(next_base) == cudaSuccess) {
        float ms = 0.0f;
        if (base.event && cudaEventElapsedTime(&ms, base.event, next_base) == cudaSuccess) {
            cudaEventDestroy(base.event);
        }
        base      = { next_base, base.ms + ms };
        next_base = nullptr;
    }
    if (!next_base && clock_type::now() > t_next_base && cudaEventCreate(&next_base) == cudaSuccess) {
        cudaEventRecord(next_base, stream);
        t_next_base = clock_type::now() + std::chrono::milliseconds(500);
    }
}

void write_launch(launched_graph & graph) {
    float start = 0.0f;
    float end   = 0.0f;
    if (graph.is_running && base.event && cudaEventQuery(graph.events.end) == cudaSuccess &&
            cudaEventElapsedTime(&start, base.event, graph.events.start) == cudaSuccess &&
            cudaEventElapsedTime(&end,   base.event, graph.events.end)   == cudaSuccess && (out || (out = open_record("GRAPHS_OUT", "graphs")))) {
        fprintf(out, "G %.0f %.0f %zu %u 0\n", 1e6*(base.ms + start), 1e6*(end - start), graph.events.n_nodes, ++n_written);
    }
    graph.is_running = false;
}

// at the end of the process, when CUDA may be gone already: what has not been written by now is lost
struct at_end {
    ~at_end() {
        if (out) {
            fclose(out);
        }
    }
} at_end;

} // namespace

extern "C" cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    NEXT(cudaStreamBeginCapture);
    const cudaError_t res = next(stream, mode);
    cudaEvent_t event;
    if (res == cudaSuccess && cudaEventCreate(&event) == cudaSuccess) {
        std::lock_guard<std::mutex> lock(mutex);
        if (cudaEventRecordWithFlags(event, stream, cudaEventRecordExternal) == cudaSuccess) {
            started[stream] = event;
        }
    }
    return res;
}

extern "C" cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t * graph) {
    NEXT(cudaStreamEndCapture);
    std::lock_guard<std::mutex> lock(mutex);
    graph_events events;
    const auto   it = started.find(stream);
    if (it != started.end()) {
        events.start = it->second;
        started.erase(it);
        if (cudaEventCreate(&events.end) != cudaSuccess || cudaEventRecordWithFlags(events.end, stream, cudaEventRecordExternal) != cudaSuccess) {
            fprintf(stderr, "graphs: a graph cannot be timed\n");
            events = {};
        }
    }
    const cudaError_t res = next(stream, graph);
    if (res == cudaSuccess) {
        captured[*graph] = events.end && cudaGraphGetNodes(*graph, nullptr, &events.n_nodes) == cudaSuccess ? events : graph_events();
    }
    return res;
}

static void take(cudaGraphExec_t exec, cudaGraph_t graph) {
    std::lock_guard<std::mutex> lock(mutex);
    auto & cur = launched[exec];
    write_launch(cur);
    cur.events = captured[graph];
}

extern "C" cudaError_t cudaGraphInstantiate(cudaGraphExec_t * exec, cudaGraph_t graph, unsigned long long flags) {
    NEXT(cudaGraphInstantiate);
    const cudaError_t res = next(exec, graph, flags);
    if (res == cudaSuccess) {
        take(*exec, graph);
    }
    return res;
}

extern "C" cudaError_t cudaGraphExecUpdate(cudaGraphExec_t exec, cudaGraph_t graph, cudaGraphExecUpdateResultInfo * info) {
    NEXT(cudaGraphExecUpdate);
    const cudaError_t res = next(exec, graph, info);
    if (res == cudaSuccess) {
        take(exec, graph);
    }
    return res;
}

extern "C" cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    NEXT(cudaGraphExecDestroy);
    {
        std::lock_guard<std::mutex> lock(mutex);
        const auto it = launched.find(exec);
        if (it != launched.end()) {
            write_launch(it->second);
            launched.erase(it);
        }
    }
    return next(exec);
}

extern "C" cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    NEXT(cudaGraphLaunch);
    {
        std::lock_guard<std::mutex> lock(mutex);
        auto & cur = launched[exec];
        write_launch(cur);
        move_base(stream);
        cur.is_running = cur.events.end != nullptr;
    }
    return next(exec, stream);
}

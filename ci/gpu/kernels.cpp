// Writes down every kernel, copy and fill that a process runs on its GPU, those inside of CUDA graphs too, for kernels.py.
//
//   g++ -O2 -fPIC -shared ci/gpu/kernels.cpp -o libkernels.so -I CUPTI/include -I CUDA/include -L CUPTI/lib -l:libcupti.so.13
//   CUDA_INJECTION64_PATH=$PWD/libkernels.so KERNELS_OUT=FOLDER/name GGML_CUDA_PDL=0 PROGRAM ...
//
// CUPTI comes with the CUDA toolkit and as the Python package nvidia-cuda-cupti. Each process, also one that is started by
// PROGRAM, writes name.PID.txt. GGML_CUDA_PDL=0 keeps kernels apart: otherwise one that waits for another counts its wait.
//
//   # command line          N id name of a kernel
//   K start duration graph launch id          times in ns; graph is 0 outside of CUDA graphs, launch is one per graph launch
//   C start duration graph launch kind        copy: 1 to the device, 2 to the host, 8 on the device
//   S start duration graph launch 0           fill
//   G start duration graph launch 0           a whole graph, with KERNELS_GRAPHS=1 in place of its kernels: graphs are then
//                                             launched about as fast as without a recorder

#include "record.h"

#include <cupti.h>

#include <map>
#include <mutex>
#include <string>

static FILE *                     out;
static std::mutex                 mutex;
static std::map<std::string, int> ids;

static int id_of(const char * name) {
    const auto entry = ids.emplace(name ? name : "?", (int) ids.size());
    if (entry.second) {
        fprintf(out, "N %d %s\n", entry.first->second, entry.first->first.c_str());
    }
    return entry.first->second;
}

template <typename T> static void write(char what, const T * record, int id) {
    fprintf(out, "%c %llu %llu %u %u %d\n", what, (unsigned long long) record->start,
        (unsigned long long) (record->end - record->start), record->graphId, record->correlationId, id);
}

static void CUPTIAPI give_buffer(uint8_t ** buffer, size_t * size, size_t * n_records) {
    *size      = 8u << 20;
    *buffer    = (uint8_t *) aligned_alloc(8, *size);
    *n_records = 0;
}

static void CUPTIAPI take_buffer(CUcontext, uint32_t, uint8_t * buffer, size_t, size_t valid) {
    std::lock_guard<std::mutex> lock(mutex);
    CUpti_Activity * record = nullptr;
    while (cuptiActivityGetNextRecord(buffer, valid, &record) == CUPTI_SUCCESS) {
        switch (record->kind) {
            case CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL: {
                const auto * kernel = (const CUpti_ActivityKernel10 *) record;
                write('K', kernel, id_of(kernel->name));
            } break;
            case CUPTI_ACTIVITY_KIND_MEMCPY: {
                const auto * copy = (const CUpti_ActivityMemcpy6 *) record;
                write('C', copy, copy->copyKind);
            } break;
            case CUPTI_ACTIVITY_KIND_GRAPH_TRACE: {
                write('G', (const CUpti_ActivityGraphTrace2 *) record, 0);
            } break;
            case CUPTI_ACTIVITY_KIND_MEMSET: {
                write('S', (const CUpti_ActivityMemset4 *) record, 0);
            } break;
            default: break;
        }
    }
    free(buffer);
}

static void finish() {
    cuptiActivityFlushAll(1);
    std::lock_guard<std::mutex> lock(mutex);
    fflush(out);
}

// called by the CUDA driver when the process first uses it
extern "C" int InitializeInjection(void) {
    out = open_record("KERNELS_OUT", "kernels");
    if (!out) {
        return 1;
    }
    cuptiActivityRegisterCallbacks(give_buffer, take_buffer);
    for (const CUpti_ActivityKind kind : { CUPTI_ACTIVITY_KIND_GRAPH_TRACE, CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL, CUPTI_ACTIVITY_KIND_MEMCPY, CUPTI_ACTIVITY_KIND_MEMSET }) {
        if (kind == CUPTI_ACTIVITY_KIND_GRAPH_TRACE && !getenv("KERNELS_GRAPHS")) {
            continue; // it takes the place of the kernels in graphs
        }
        if (cuptiActivityEnable(kind) != CUPTI_SUCCESS) {
            fprintf(stderr, "kernels: CUPTI does not record kind %d here\n", (int) kind);
        }
    }
    atexit(finish);
    return 1;
}

// Times products of quantized weights with few columns: the matrices of a graph are so many that no cache holds them.
//
//   g++ -std=c++17 -O2 ci/gpu/products.cpp -o products -I LLAMA/ggml/include -L BIN -lggml -lggml-base -Wl,-rpath,BIN
//   ./products [TYPE:ROWSxK ...] [-n COLUMNS,...] [-r REPEATS]
//
// A line for each: us of a product (median of the repeats, from the least to the greatest), GB/s of weights, weights per ns.
// All products of a graph read the same columns, so what prepares columns runs once in each repeat.

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

static const char * usage = "usage: products [TYPE:ROWSxK ...] [-n COLUMNS,...] [-r REPEATS]\n";

static ggml_type type_of(const std::string & name) {
    for (int type = 0; type < GGML_TYPE_COUNT; type++) {
        const char * other = ggml_type_name((ggml_type) type);
        if (other && name == other) {
            return (ggml_type) type;
        }
    }
    fprintf(stderr, "products: no type is called '%s'; types are those of ggml, such as q4_K or q8_0\n", name.c_str());
    exit(2);
}

static void measure(ggml_backend_t backend, const std::string & what, int n_cols, int n_repeats) {
    char      name[32] = {};
    long long n_rows = 0, n_k = 0;
    if (sscanf(what.c_str(), "%31[^:]:%lldx%lld", name, &n_rows, &n_k) != 3 || n_rows < 1 || n_k < 1 || n_k > 1 << 20 || n_rows > 1 << 20) {
        fprintf(stderr, "products: '%s' is not TYPE:ROWSxK\n%s", what.c_str(), usage);
        exit(2);
    }
    const ggml_type type = type_of(name);
    if (n_k % ggml_blck_size(type) != 0) {
        fprintf(stderr, "products: %s: rows of %s hold multiples of %lld\n", what.c_str(), name, (long long) ggml_blck_size(type));
        exit(2);
    }

    const size_t bytes  = ggml_row_size(type, n_k)*n_rows;
    const int    n_mats = std::max<size_t>(4, std::min<size_t>(64, (size_t) 1000000000/bytes));

    ggml_init_params params = { ggml_tensor_overhead()*(2*n_mats + 8) + ggml_graph_overhead(), nullptr, true };
    ggml_context * ctx   = ggml_init(params);
    ggml_cgraph  * graph = ggml_new_graph(ctx);
    ggml_tensor  * cols  = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, n_k, n_cols);
    std::vector<ggml_tensor *> mats;
    for (int i = 0; i < n_mats; i++) {
        mats.push_back(ggml_new_tensor_2d(ctx, type, n_k, n_rows));
        ggml_build_forward_expand(graph, ggml_mul_mat(ctx, mats.back(), cols));
    }
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors(ctx, backend);
    if (!buffer) {
        fprintf(stderr, "products: %s: no memory for %d matrices\n", what.c_str(), n_mats);
        exit(1);
    }
    ggml_backend_buffer_set_usage(buffer, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);

    std::vector<float> values(n_k*n_cols);
    uint32_t state = 1;
    auto next = [&]() {
        state = state*1664525u + 1013904223u;
        return (float) (int32_t) state/2147483648.0f;
    };
    std::generate(values.begin(), values.end(), next);
    ggml_backend_tensor_set(cols, values.data(), 0, ggml_nbytes(cols));

    const int n_some = 16; // rows, repeated
    std::vector<float>   some(n_some*n_k);
    std::vector<uint8_t> quantized(bytes);
    std::generate(some.begin(), some.end(), next);
    const size_t done = ggml_quantize_chunk(type, some.data(), quantized.data(), 0, std::min<int64_t>(n_some, n_rows), n_k, nullptr);
    for (size_t i = done; i < bytes; i += done) {
        memcpy(quantized.data() + i, quantized.data(), std::min(done, bytes - i));
    }
    for (ggml_tensor * mat : mats) {
        ggml_backend_tensor_set(mat, quantized.data(), 0, bytes);
    }

    std::vector<double> times;
    for (int i = -3; i < n_repeats; i++) {
        const auto start = std::chrono::steady_clock::now();
        if (ggml_backend_graph_compute(backend, graph) != GGML_STATUS_SUCCESS) {
            fprintf(stderr, "products: %s: the graph failed\n", what.c_str());
            exit(1);
        }
        if (i >= 0) {
            times.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count()/n_mats);
        }
    }
    std::sort(times.begin(), times.end());
    const double us = times[times.size()/2];
    printf("%-22s %3d columns: %7.2f us (%.2f to %.2f), %5.0f GB/s, %5.2f weights/ns\n", what.c_str(), n_cols, us, times.front(), times.back(),
        bytes/us/1e3, n_rows*n_k/us/1e3);
    fflush(stdout);

    ggml_backend_buffer_free(buffer);
    ggml_free(ctx);
}

int main(int argc, char ** argv) {
    std::vector<std::string> whats;
    std::vector<int>         cols      = { 16 };
    int                      n_repeats = 20;
    for (int i = 1; i < argc; i++) {
        const std::string word = argv[i];
        if (word == "-n" && i + 1 < argc) {
            cols.clear();
            for (const char * p = argv[++i]; *p; p += strcspn(p, ","), p += *p == ',') {
                cols.push_back(atoi(p));
            }
        } else if (word == "-r" && i + 1 < argc) {
            n_repeats = atoi(argv[++i]);
        } else if (word[0] == '-') {
            fputs(usage, stderr);
            return 2;
        } else {
            whats.push_back(word);
        }
    }
    if (cols.empty() || *std::min_element(cols.begin(), cols.end()) < 1 || n_repeats < 1) {
        fputs(usage, stderr);
        return 2;
    }
    if (whats.empty()) { // of the 8B, the 27B and their drafters
        whats = { "q4_K:4096x4096", "q4_K:12288x4096", "q6_K:4096x12288", "q6_K:151936x4096", "q4_K:17408x5120", "q4_K:5120x17408",
                  "q8_0:12288x4096", "q8_0:17408x5120", "q8_0:5120x25600" };
    }
    ggml_backend_load_all();
    ggml_backend_t backend = ggml_backend_init_best();
    printf("%s\n", ggml_backend_dev_description(ggml_backend_get_device(backend)));
    for (const std::string & what : whats) {
        for (const int n_cols : cols) {
            measure(backend, what, n_cols, n_repeats);
        }
    }
    ggml_backend_free(backend);
}

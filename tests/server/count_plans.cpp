// Preloaded into llama-server, it writes a byte to the file named by PLANS_FILE each time buffers are planned for a graph.

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>

extern "C" bool ggml_gallocr_reserve_n(void * galloc, void * graph, const int * node_buffers, const int * leaf_buffers) {
    static const auto next = reinterpret_cast<decltype(&ggml_gallocr_reserve_n)>(dlsym(RTLD_NEXT, "ggml_gallocr_reserve_n"));
    if (std::FILE * file = std::fopen(std::getenv("PLANS_FILE"), "a")) {
        std::fputc('.', file);
        std::fclose(file);
    }
    return next(galloc, graph, node_buffers, leaf_buffers);
}

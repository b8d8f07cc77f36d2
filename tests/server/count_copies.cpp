// Preloaded into llama-server, it appends a line to the file named by COPIES_FILE for each copy of a result of a graph to the
// host: the name of the tensor and the bytes.

#include <dlfcn.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>

extern "C" const char * ggml_get_name(const void * tensor);

extern "C" void ggml_backend_tensor_get_async(void * backend, const void * tensor, void * data, std::size_t offset, std::size_t size) {
    static const auto next = reinterpret_cast<decltype(&ggml_backend_tensor_get_async)>(dlsym(RTLD_NEXT, "ggml_backend_tensor_get_async"));
    static const auto name = reinterpret_cast<decltype(&ggml_get_name)>(dlsym(RTLD_NEXT, "ggml_get_name"));
    if (std::FILE * file = std::fopen(std::getenv("COPIES_FILE"), "a")) {
        std::fprintf(file, "%s %zu\n", name(tensor), size);
        std::fclose(file);
    }
    next(backend, tensor, data, offset, size);
}

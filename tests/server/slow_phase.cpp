// Makes one phase of a speculative round slow, from outside: preloaded into llama-server, it puts the clock forward in the
// function that the server calls in that phase, by more than any machine needs for the rest. The file named by
// SLOW_PHASE_FILE holds the phase and the milliseconds; it is read at every call, so that one server serves for all phases.

#include <dlfcn.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

struct common_batch;
struct common_sampler;
struct common_speculative;
struct llama_batch_ext;
struct llama_context;

// the drafter decodes through the same function as the target
static std::atomic<int> n_in_drafter{0};

struct in_drafter {
    in_drafter()  { n_in_drafter++; }
    ~in_drafter() { n_in_drafter--; }
};

static std::atomic<int64_t> forward_us{0};

static void delay(const char * phase) {
    std::ifstream file(getenv("SLOW_PHASE_FILE"));
    std::string slow;
    int ms = 0;
    if (file >> slow >> ms && slow == phase) {
        forward_us += 1000 * (int64_t) ms;
    }
}

// the function of the same name in the library behind this one
#define NEXT(function) reinterpret_cast<decltype(&function)>(dlsym(RTLD_NEXT, symbol))

extern "C" int64_t ggml_time_us(void) {
    static const char * symbol = "ggml_time_us";
    static const auto clock = NEXT(ggml_time_us);
    return clock() + forward_us;
}

void common_speculative_draft(common_speculative * spec) {
    static const char * symbol = "_Z24common_speculative_draftP18common_speculative";
    in_drafter guard;
    delay("draft");
    NEXT(common_speculative_draft)(spec);
}

bool common_speculative_process(common_speculative * spec, const common_batch & batch) {
    static const char * symbol = "_Z26common_speculative_processP18common_speculativeRK12common_batch";
    in_drafter guard;
    delay("inject");
    return NEXT(common_speculative_process)(spec, batch);
}

void common_speculative_accept(common_speculative * spec, int32_t seq_id, uint16_t n_accepted) {
    static const char * symbol = "_Z25common_speculative_acceptP18common_speculativeit";
    delay("commit");
    NEXT(common_speculative_accept)(spec, seq_id, n_accepted);
}

std::vector<int32_t> common_sampler_sample_and_accept_n(
        common_sampler * smpl, llama_context * ctx, const std::vector<int> & idxs, const std::vector<int32_t> & draft, bool grammar_first,
        const std::function<void(size_t, int32_t)> & on_sample) {
    static const char * symbol = "_Z34common_sampler_sample_and_accept_nP14common_samplerP13llama_contextRKSt6vectorIiSaIiEES7_bRKSt8functionIFvmiEE";
    delay("sample");
    return NEXT(common_sampler_sample_and_accept_n)(smpl, ctx, idxs, draft, grammar_first, on_sample);
}

std::string common_token_to_piece(const llama_context * ctx, int32_t token, bool special) {
    static const char * symbol = "_Z21common_token_to_pieceB5cxx11PK13llama_contextib";
    delay("other");
    return NEXT(common_token_to_piece)(ctx, token, special);
}

extern "C" int32_t llama_process(llama_context * ctx, int type, llama_batch_ext * batch) {
    static const char * symbol = "llama_process";
    const int32_t res = NEXT(llama_process)(ctx, type, batch);
    if (n_in_drafter == 0) {
        delay("verify"); // the draft may have become known on the way
    }
    return res;
}

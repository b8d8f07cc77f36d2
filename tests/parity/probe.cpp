// Runs greedy speculative decoding with the fork's own driver and writes down what the driver saw and did.
//
//   probe IN OUT [llama options, as for llama-speculative-simple: -m, -md, --dflash, ...]
//
// IN   one job per line: the number of tokens to generate, then the token ids of the prompt
// OUT  a folder that exists; per job i:
//        i.json      {"taps": [...], "n_embd", "n_vocab", "tokens": [...],
//                     "reused": graphs of the drafter that were not built again,
//                     "rounds": [{"n", "draft", "accepted", "rows"}, ...]}
//                    tokens  prompt and generated text, the last one not yet committed
//                    n       tokens committed when this round drafted; its anchor is tokens[n]
//                    rows    draft distributions computed in this round, in the order of i.logits
//        i.features  f32 [committed, taps, n_embd]: the target's hidden states as handed to the drafter, kept rows only
//        i.logits    f32 [sum of rows, n_vocab]: the drafter's output before sampling and before a Markov bias
//        i.confidences  f32 [sum of rows], empty without a confidence head: its say on each row
//
// The steps are those of a server slot: whole prompt, first token sampled, then draft / verify / accept / roll back.

#include "arg.h"
#include "common.h"
#include "llama.h"
#include "sampling.h"
#include "speculative.h"

#include "llama-ext.h"

#if __has_include("speculative-resolve.h") // --dflash and --eagle3 are the fork's
#include "speculative-resolve.h"
#else
static void common_speculative_resolve(common_params &) {}
#endif

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

// Collects the output tensor of every graph that is computed while it is on. Works for drivers that decode once
// per block and for those that decode once per token, and with sampling on the host or on the device.
struct logits_recorder {
    bool               on = false;
    int32_t            rows = 0;
    std::vector<float> data;

    static bool callback(ggml_tensor * t, bool ask, void * user_data) {
        auto & self = *static_cast<logits_recorder *>(user_data);
        const bool wanted = self.on && std::strcmp(t->name, "result_output") == 0;
        if (ask || !wanted) {
            return wanted || !ask;
        }
        const size_t n_old = self.data.size();
        self.data.resize(n_old + ggml_nelements(t));
        ggml_backend_tensor_get(t, self.data.data() + n_old, 0, ggml_nbytes(t));
        self.rows += (int32_t) ggml_nrows(t);
        return true;
    }
};

struct round_log {
    int32_t      n;
    llama_tokens draft;
    int32_t      accepted;
    int32_t      rows;
};

static void stop(const std::string & why) {
    fprintf(stderr, "probe: %s\n", why.c_str());
    exit(1);
}

static void write_f32(const std::string & path, const std::vector<float> & data) {
    std::ofstream out(path, std::ios::binary);
    out.write(reinterpret_cast<const char *>(data.data()), data.size() * sizeof(float));
    if (!out.good()) {
        stop("cannot write " + path);
    }
}

template <typename T>
static std::string json_list(const T * data, size_t n) {
    std::string s = "[";
    for (size_t i = 0; i < n; ++i) {
        s += (i ? "," : "") + std::to_string(data[i]);
    }
    return s + "]";
}

struct probe {
    common_params      & params;
    llama_context      * ctx_tgt;
    llama_context      * ctx_dft;
    common_speculative * spec;
    logits_recorder    & recorder;

    const llama_model * model_tgt = llama_get_model(ctx_tgt);
    const llama_model * model_dft = llama_get_model(ctx_dft);

    const int32_t * taps   = llama_model_target_layer_ids  (model_dft);
    const uint32_t  n_taps = llama_model_target_layer_ids_n(model_dft);
    const int32_t   n_embd = llama_model_n_embd(model_tgt);

    std::vector<float> features    = {};
    std::vector<float> confidences = {};

    bool has_confidence_head() const {
        char buf[8] = {};
        return llama_model_meta_val_str(model_dft, "dflash.has_confidence_head", buf, sizeof(buf)) >= 0 &&
            std::strcmp(buf, "true") == 0;
    }

    // target step + feeding the driver; keeps the features of all rows
    void process(common_batch & batch) {
        if (llama_process(ctx_tgt, LLAMA_PROCESS_TYPE_DECODE, batch.get()) != 0) {
            stop("the target refused a batch");
        }
        for (int32_t i = 0; i < batch.size(); ++i) {
            for (uint32_t k = 0; k < n_taps; ++k) {
                const float * row = llama_get_embeddings_layer_inp(ctx_tgt, taps[k]) + (size_t) i*n_embd;
                features.insert(features.end(), row, row + n_embd);
            }
        }
        if (!common_speculative_process(spec, batch)) {
            stop("the drafter refused a batch");
        }
    }

    void keep(int32_t n) {
        features.resize((size_t) n*n_taps*n_embd);
        if (!llama_memory_seq_rm(llama_get_memory(ctx_tgt), 0, n, -1) ||
            !llama_memory_seq_rm(llama_get_memory(ctx_dft), 0, n, -1)) {
            stop("a context cannot roll back: is the target a hybrid without recurrent snapshots?");
        }
    }

    void run(const llama_tokens & prompt, int32_t n_predict, const std::string & out) {
        llama_memory_clear(llama_get_memory(ctx_tgt), true);
        llama_memory_clear(llama_get_memory(ctx_dft), true);
        features.clear();
        confidences.clear();
        recorder.rows = 0;
        recorder.data.clear();

        common_sampler_ptr smpl(common_sampler_init(model_tgt, params.sampling));
        common_batch batch(ctx_tgt);

        const int32_t n_prompt = (int32_t) prompt.size();
        const int32_t n_batch  = (int32_t) llama_n_batch(ctx_tgt);
        for (int32_t beg = 0; beg < n_prompt; beg += n_batch) {
            const int32_t end = std::min(n_prompt, beg + n_batch);
            batch.clear();
            for (int32_t i = beg; i < end; ++i) {
                batch.add(prompt[i], i, 0, i == n_prompt - 1);
            }
            process(batch);
        }

        llama_tokens committed = prompt;
        llama_token  last      = common_sampler_sample(smpl.get(), ctx_tgt, -1);
        common_sampler_accept(smpl.get(), last, true);
        common_speculative_begin(spec, 0, committed);

        const int32_t reused_before = llama_perf_context(ctx_dft).n_reused;

        std::vector<round_log> rounds;
        while ((int32_t) committed.size() + 1 < n_prompt + n_predict) {
            const int32_t n = (int32_t) committed.size();

            llama_tokens draft;
            auto & dp = common_speculative_get_draft_params(spec, 0);
            dp.drafting = true;
            dp.n_max    = -1;
            dp.pos0     = n;
            dp.id_last  = last;
            dp.prompt   = &committed;
            dp.result   = &draft;

            const int32_t rows_before = recorder.rows;
            recorder.on = true;
            common_speculative_draft(spec);
            recorder.on = false;

            if (has_confidence_head()) {
                // one value a row, spread over the row
                const float * conf = llama_get_embeddings_nextn(ctx_dft);
                for (int32_t i = 0; i < recorder.rows - rows_before; ++i) {
                    confidences.push_back(conf[(size_t) i*llama_model_n_embd(model_dft)]);
                }
            }

            // the drafter forgets its own guesses before it sees the target's features of the same positions
            llama_memory_seq_rm(llama_get_memory(ctx_dft), 0, n, -1);

            batch.clear();
            batch.add(last, n, 0, true);
            for (size_t i = 0; i < draft.size(); ++i) {
                batch.add(draft[i], n + 1 + (int32_t) i, 0, true);
            }
            process(batch);

            const llama_tokens ids = common_sampler_sample_and_accept_n(smpl.get(), ctx_tgt, draft);
            const int32_t accepted = (int32_t) ids.size() - 1;
            common_speculative_accept(spec, 0, accepted);

            committed.push_back(last);
            committed.insert(committed.end(), ids.begin(), ids.end() - 1);
            last = ids.back();
            keep((int32_t) committed.size());

            rounds.push_back({ n, draft, accepted, recorder.rows - rows_before });
        }

        committed.push_back(last);

        std::string json = "{\"taps\":" + json_list(taps, n_taps);
        json += ",\"n_embd\":"  + std::to_string(n_embd);
        json += ",\"n_vocab\":" + std::to_string(llama_vocab_n_tokens(llama_model_get_vocab(model_tgt)));
        json += ",\"tokens\":"  + json_list(committed.data(), committed.size());
        json += ",\"reused\":"  + std::to_string(llama_perf_context(ctx_dft).n_reused - reused_before);
        json += ",\"rounds\":[";
        for (size_t i = 0; i < rounds.size(); ++i) {
            const auto & r = rounds[i];
            json += std::string(i ? "," : "") + "{\"n\":" + std::to_string(r.n);
            json += ",\"draft\":" + json_list(r.draft.data(), r.draft.size());
            json += ",\"accepted\":" + std::to_string(r.accepted) + ",\"rows\":" + std::to_string(r.rows) + "}";
        }
        json += "]}\n";

        write_f32(out + ".features", features);
        write_f32(out + ".logits", recorder.data);
        write_f32(out + ".confidences", confidences);
        std::ofstream(out + ".json") << json;
    }
};

int main(int argc, char ** argv) {
    if (argc < 3) {
        stop("usage: probe IN OUT [llama options]");
    }
    const std::string in  = argv[1];
    const std::string out = argv[2];
    argv[2] = argv[0];

    logits_recorder recorder;
    common_params params;
    params.cb_eval           = logits_recorder::callback;
    params.cb_eval_user_data = &recorder;

    common_init();
    if (!common_params_parse(argc - 2, argv + 2, params, LLAMA_EXAMPLE_SPECULATIVE)) {
        return 1;
    }
    try {
        common_speculative_resolve(params);
    } catch (const std::exception & err) {
        stop(err.what());
    }

    const auto limits = common_speculative_get_output_limits(
            params.n_batch, params.n_parallel, common_speculative_n_max(&params.speculative));
    params.n_outputs_max         = limits.total;
    params.n_outputs_max_per_seq = limits.per_seq;

    llama_backend_init();
    auto init_tgt = common_init_from_params(params);
    if (init_tgt->context() == nullptr) {
        stop("the target does not load");
    }
    common_params params_dft = common_base_params_to_speculative(params);
    auto init_dft = common_speculative_init_from_params(params_dft, init_tgt->model(), init_tgt->context());
    if (init_dft->context() == nullptr) {
        stop("the drafter does not load");
    }
    params.speculative.draft.ctx_tgt = init_tgt->context();
    params.speculative.draft.ctx_dft = init_dft->context();

    common_speculative_ptr spec(common_speculative_init(params.speculative, 1));
    if (!spec) {
        stop("the options name no drafter");
    }

    probe p { params, init_tgt->context(), init_dft->context(), spec.get(), recorder };

    std::ifstream jobs(in);
    std::string line;
    for (int32_t i = 0; std::getline(jobs, line); ++i) {
        std::istringstream fields(line);
        int32_t n_predict = 0;
        fields >> n_predict;
        llama_tokens prompt;
        for (llama_token id; fields >> id; ) {
            prompt.push_back(id);
        }
        if (prompt.empty() || n_predict <= 0) {
            stop("job " + std::to_string(i) + " needs a positive count and a prompt");
        }
        p.run(prompt, n_predict, out + "/" + std::to_string(i));
    }

    spec.reset();
    llama_backend_free();
    return 0;
}

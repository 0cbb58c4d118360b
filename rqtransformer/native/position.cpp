// All D codes of one position: the head's steps, the classifiers, the draws, and what the next step is given.
//
// Legend: B images, C width, D code depth, E code-vector size, K codes of a table, V vocabulary.

#include <algorithm>
#include <vector>

#include "functions.h"

struct Depth {
    const float* token_C;  // added to the head's input
    Map classifier;
    const float *input_table_KE, *head_table_KE;  // vectors of the codes, for the body and for the head
    int64_t vocabulary, top_k;
    double top_p;
    float temperature;
};

struct Head {
    const Stack* stack;
    Norm norm;           // before the classifiers
    const Map* project;  // code vector -> head's input; or null: the vector itself
    const Depth* depths;
    int64_t depth, input_size, head_size;  // of the tables' vectors
    int32_t cumulate;  // the head sees the sum of the vectors so far, before `project`
};

// to = the rows of the table that the codes select (row 0 for NOT_DRAWN), added to what is there if `add`.
static void look_up(const float* table_KE, const int64_t* code_B, int64_t images, int64_t size, bool add,
                    float* to_BE) {
    for (int64_t image = 0; image < images; ++image, to_BE += size) {
        const float* row = table_KE + std::max<int64_t>(code_B[image], 0) * size;
        for (int64_t e = 0; e < size; ++e) to_BE[e] = add ? to_BE[e] + row[e] : row[e];
    }
}

// Draws codes (B, D) for the body's output (B, C); `sum` becomes the sum of their vectors for the body (B, E).
extern "C" void rq_position(const Head* head, float* keys_values, const float* context_BC, const double* uniform_DB,
                            int64_t* codes_BD, float* sum_BE, int64_t images, int threads) {
    const int64_t width = head->stack->width;
    static thread_local std::vector<float> memory, logits_BV;
    static thread_local std::vector<int64_t> code_B;
    memory.resize(images * (2 * width + head->head_size));
    code_B.resize(images);
    float *slot_BC = memory.data(), *out_BC = slot_BC + images * width, *vector_BE = out_BC + images * width;
    std::copy(context_BC, context_BC + images * width, slot_BC);
    for (int64_t d = 0; d < head->depth; ++d) {
        const Depth& depth = head->depths[d];
        for (int64_t i = 0; i < images * width; ++i) slot_BC[i] += depth.token_C[i % width];
        const Cache cache{keys_values, head->depth, d};
        rq_step(head->stack, &cache, slot_BC, out_BC, images, threads);
        logits_BV.resize(images * depth.classifier.outputs);
        rq_linear(&depth.classifier, &head->norm, out_BC, logits_BV.data(), images, NONE, false, threads);
        rq_draw(logits_BV.data(), depth.classifier.outputs, uniform_DB + d * images, code_B.data(), images,
                depth.vocabulary, depth.temperature, depth.top_k, depth.top_p, threads);
        for (int64_t image = 0; image < images; ++image) codes_BD[image * head->depth + d] = code_B[image];
        look_up(depth.input_table_KE, code_B.data(), images, head->input_size, d > 0, sum_BE);
        if (d + 1 == head->depth) break;
        if (!head->project) {
            look_up(depth.head_table_KE, code_B.data(), images, width, false, slot_BC);
            continue;
        }
        look_up(depth.head_table_KE, code_B.data(), images, head->head_size, head->cumulate && d > 0, vector_BE);
        rq_linear(head->project, nullptr, vector_BE, slot_BC, images, NONE, false, threads);
    }
}

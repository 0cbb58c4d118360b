// Draws a code per image from its logits: temperature, top-k, softmax, top-p, inversion. Nothing is sorted.
//
// Both cuts are found by halving the range of the score at the cut: how many scores, or how much probability, lies at
// or above a value falls as the value rises. Ties at the k-th score all stay; the score that crosses p stays, and of
// equal ones as many as it takes, the first ones.
//
// A row with a NaN or +inf, or with nothing but -inf, has no distribution: NOT_DRAWN.
//
// Legend: B images, V vocabulary; "kept" arrays hold what is left after top-k, in the order of the codes.

#include <cstring>
#include <vector>

#include "functions.h"

// fp32 numbers as integers of the same order; -0 must have become 0.
static inline int32_t ordered(float value) {
    int32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits ^ (bits >> 31 & 0x7FFFFFFF);
}

// The largest key of lowest..highest for which `holds` is true; true for the lowest, and never true again once false.
template <class Holds>
static int32_t last_true(int32_t lowest, int32_t highest, Holds holds) {
    while (lowest < highest) {
        const auto middle = static_cast<int32_t>(lowest + (static_cast<int64_t>(highest) - lowest + 1) / 2);
        if (holds(middle)) lowest = middle;
        else highest = middle - 1;
    }
    return lowest;
}

constexpr int32_t KEY_OF_INFINITY = 0x7F800000, KEY_OF_MINUS_INFINITY = -0x7F800001;  // NaNs lie beyond them

struct Row {
    std::vector<float> scores, weights;
    std::vector<int32_t> keys, kept_keys, kept_codes;

    void resize(int64_t vocabulary) {
        for (auto* numbers : {&scores, &weights}) numbers->resize(vocabulary + WIDEST);
        for (auto* numbers : {&keys, &kept_keys, &kept_codes}) numbers->resize(vocabulary);
    }
};

static double weight_from(const Row& row, int64_t count, int32_t lowest) {
    const float* weights = row.weights.data();
    const int32_t* keys = row.kept_keys.data();
    double sum = 0.0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; ++i) sum += keys[i] >= lowest ? weights[i] : 0.0f;
    return sum;
}

// Sets the weights of codes below the cut of top-p to 0; returns what is left of the total.
static double cut_weights(Row& row, int64_t count, int32_t lowest, int32_t highest, double limit) {
    const int32_t cut = last_true(lowest, highest, [&](int32_t key) { return weight_from(row, count, key) >= limit; });
    double sum = cut == highest ? 0.0 : weight_from(row, count, cut + 1);  // of what is above the cut
    for (int64_t i = 0; i < count; ++i) {
        if (row.kept_keys[i] > cut) continue;
        if (row.kept_keys[i] < cut || sum >= limit) row.weights[i] = 0.0f;
        else sum += row.weights[i];
    }
    return sum;
}

// One code: the one at which the cumulated weight first exceeds `uniform` of the total.
static int64_t draw(Row& row, const float* logits, int64_t vocabulary, double uniform, float temperature,
                    int64_t top_k, double top_p) {
    float* scores = row.scores.data();
    int32_t* keys = row.keys.data();
    int32_t lowest = INT32_MAX, highest = INT32_MIN;
#pragma omp simd reduction(min : lowest) reduction(max : highest)
    for (int64_t v = 0; v < vocabulary; ++v) {
        scores[v] = logits[v] / temperature + 0.0f;  // no -0
        keys[v] = ordered(scores[v]);
        lowest = keys[v] < lowest ? keys[v] : lowest;
        highest = keys[v] > highest ? keys[v] : highest;
    }
    if (highest >= KEY_OF_INFINITY || lowest < KEY_OF_MINUS_INFINITY || highest == KEY_OF_MINUS_INFINITY) {
        return NOT_DRAWN;
    }
    if (top_k < vocabulary) {
        lowest = last_true(lowest, highest, [&](int32_t key) {
            int32_t at_least = 0;
#pragma omp simd reduction(+ : at_least)
            for (int64_t v = 0; v < vocabulary; ++v) at_least += keys[v] >= key;
            return at_least >= top_k;
        });
    }
    int64_t count = 0, best = 0;
    for (int64_t v = 0; v < vocabulary; ++v) {
        row.kept_keys[count] = keys[v];
        row.kept_codes[count] = static_cast<int32_t>(v);
        row.weights[count] = scores[v];
        if (keys[v] == highest) best = v;
        count += keys[v] >= lowest;
    }
    const float largest = scores[best];
    for (int64_t i = 0; i < count; i += WIDEST) {
        store<WIDEST>(&row.weights[i], exponential<WIDEST>(load<WIDEST>(&row.weights[i]) - largest));
    }
    double total = weight_from(row, count, lowest);
    if (top_p < 1.0) total = cut_weights(row, count, lowest, highest, top_p * total);
    const double limit = uniform * total;
    double sum = 0.0;
    for (int64_t i = 0; i < count; ++i) {
        sum += row.weights[i];
        if (sum > limit) return row.kept_codes[i];
    }
    return best;  // rounding only: the limit is below the total
}

void rq_draw(const float* logits_BV, int64_t stride, const double* uniform_B, int64_t* code_B, int64_t images,
             int64_t vocabulary, float temperature, int64_t top_k, double top_p, int threads) {
#pragma omp parallel num_threads(threads)
    {
        static thread_local Row row;
        row.resize(vocabulary);
#pragma omp for schedule(static)
        for (int64_t image = 0; image < images; ++image) {
            code_B[image] = draw(row, logits_BV + image * stride, vocabulary, uniform_B[image], temperature, top_k,
                                 top_p);
        }
    }
}

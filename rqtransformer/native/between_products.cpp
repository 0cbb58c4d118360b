// What a training step does between its products: dropout and the sum around a branch, attention among the codes
// of one stack, the loss of rows of logits. Going back the same, from what torch has kept.
//
// Every row, element or attention head is worked on by itself, so the number of threads changes no bit.
//
// Legend: N stacks, L codes of a stack, A attention heads, F features per attention head, n rows, V vocabulary, K codes
// that have a target.

#include <cmath>

#include "functions.h"
#include "lanes.h"

constexpr int64_t STRETCH = 4096;  // elements that one thread works on at a time
constexpr int64_t MOST_CODES = 8;
constexpr float LOWEST_TARGET = -64.0f;  // a logarithm; `targets.py`

void rq_drop(const float* x, const int16_t* draws, int32_t first_kept, float scale, const float* residual, float* out,
             int64_t count, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t first = 0; first < count; first += STRETCH) {
        const int64_t end = first + STRETCH < count ? first + STRETCH : count;
        if (residual == nullptr) {
#pragma omp simd
            for (int64_t i = first; i < end; ++i) out[i] = x[i] * (draws[i] >= first_kept ? scale : 0.0f);
        } else {
#pragma omp simd
            for (int64_t i = first; i < end; ++i) out[i] = residual[i] + x[i] * (draws[i] >= first_kept ? scale : 0.0f);
        }
    }
}

static inline float inner(const float* a_F, const float* b_F, int64_t features) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t f = 0; f < features; ++f) sum += a_F[f] * b_F[f];
    return sum;
}

static inline void add(float weight, const float* from_F, float* to_F, int64_t features) {
#pragma omp simd
    for (int64_t f = 0; f < features; ++f) to_F[f] += weight * from_F[f];
}

static inline void clear(float* at_F, int64_t features) {
    for (int64_t f = 0; f < features; ++f) at_F[f] = 0.0f;
}

void rq_attend_close(const float* query_NLAF, const float* key_NLAF, const float* value_NLAF, float* out_NLAF,
                     float* weights_NALL, int64_t stacks, int64_t length, int64_t heads, int64_t features,
                     int threads) {
    const int64_t row = heads * features;
    const float scale = 1.0f / std::sqrt(static_cast<float>(features));
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < stacks; ++n) {
        for (int64_t a = 0; a < heads; ++a) {
            const int64_t start = n * length * row + a * features;
            float* weights_LL = weights_NALL + (n * heads + a) * length * length;
            for (int64_t late = 0; late < length; ++late) {
                float* weights_L = weights_LL + late * length;
                float best = -INFINITY, total = 0.0f;
                for (int64_t early = 0; early <= late; ++early) {
                    const float* query_F = query_NLAF + start + late * row;
                    weights_L[early] = inner(query_F, key_NLAF + start + early * row, features) * scale;
                    best = weights_L[early] > best ? weights_L[early] : best;
                }
                for (int64_t early = 0; early <= late; ++early) {
                    weights_L[early] = exponential<1>(Float<1>{weights_L[early] - best})[0];
                    total += weights_L[early];
                }
                float* out_F = out_NLAF + start + late * row;
                clear(out_F, features);
                for (int64_t early = 0; early < length; ++early) {
                    weights_L[early] = early <= late ? weights_L[early] / total : 0.0f;
                    if (early <= late) add(weights_L[early], value_NLAF + start + early * row, out_F, features);
                }
            }
        }
    }
}

void rq_attend_close_slopes(const float* query_NLAF, const float* key_NLAF, const float* value_NLAF,
                            const float* weights_NALL, const float* slope_NLAF, float* query_slope_NLAF,
                            float* key_slope_NLAF, float* value_slope_NLAF, int64_t stacks, int64_t length,
                            int64_t heads, int64_t features, int threads) {
    const int64_t row = heads * features;
    const float scale = 1.0f / std::sqrt(static_cast<float>(features));
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < stacks; ++n) {
        for (int64_t a = 0; a < heads; ++a) {
            const int64_t start = n * length * row + a * features;
            const float* weights_LL = weights_NALL + (n * heads + a) * length * length;
            for (int64_t late = 0; late < length; ++late) {
                const int64_t here = start + late * row;
                clear(query_slope_NLAF + here, features);
                clear(key_slope_NLAF + here, features);
                clear(value_slope_NLAF + here, features);
                const float* weights_L = weights_LL + late * length;
                float slope_L[MOST_CODES], mean = 0.0f;
                for (int64_t early = 0; early <= late; ++early) {
                    slope_L[early] = inner(slope_NLAF + here, value_NLAF + start + early * row, features);
                    mean += slope_L[early] * weights_L[early];
                }
                for (int64_t early = 0; early <= late; ++early) {
                    const int64_t there = start + early * row;
                    const float of_score = (slope_L[early] - mean) * weights_L[early] * scale;
                    add(of_score, key_NLAF + there, query_slope_NLAF + here, features);
                    add(of_score, query_NLAF + here, key_slope_NLAF + there, features);
                    add(weights_L[early], slope_NLAF + here, value_slope_NLAF + there, features);
                }
            }
        }
    }
}

// The highest of `count` numbers; NaN where one of them is NaN.
static float highest(const float* x, int64_t count) {
    float best = -INFINITY;
    int32_t lost = 0;
#pragma omp simd reduction(max : best) reduction(| : lost)
    for (int64_t i = 0; i < count; ++i) {
        best = x[i] > best ? x[i] : best;
        lost |= x[i] != x[i];
    }
    return lost ? NAN : best;
}

// exp(max(x - best, lowest)) into `out`; returns the sum. NaN and infinity stay what they are.
static float exponentials(const float* x, float best, float lowest, float* out, int64_t count) {
    Float<WIDEST> sums = {};
    int64_t i = 0;
    for (; i + WIDEST <= count; i += WIDEST) {
        const Float<WIDEST> below = load<WIDEST>(x + i) - best;
        const Float<WIDEST> value = exponential<WIDEST>(below < lowest ? all<WIDEST>(lowest) : below);
        store<WIDEST>(out + i, value);
        sums += value;
    }
    float total = 0.0f;
    for (int lane = 0; lane < WIDEST; ++lane) total += sums[lane];
    for (; i < count; ++i) {
        const float below = x[i] - best;
        out[i] = exponential<1>(Float<1>{below < lowest ? lowest : below})[0];
        total += out[i];
    }
    return total;
}

void rq_cross_entropy_rows(const float* logits_nV, int64_t stride, const int64_t* codes_n, int64_t codes_stride,
                           float* scores_nK, int64_t targets, float eps, float* slope_nV, int64_t slope_stride,
                           float* loss_3n, int64_t rows, int64_t vocabulary, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < rows; ++n) {
        const float* logits_V = logits_nV + n * stride;
        float* slope_V = slope_nV + n * slope_stride;
        const int64_t code = codes_n[n * codes_stride];
        const float best = highest(logits_V, vocabulary);
        const float total = exponentials(logits_V, best, -INFINITY, slope_V, vocabulary) + eps;
        const float log_norm = best + std::log(total), code_loss = log_norm - logits_V[code];
        const float share = 1.0f / total;
        float loss = code_loss;
        if (scores_nK == nullptr) {
#pragma omp simd
            for (int64_t v = 0; v < vocabulary; ++v) slope_V[v] *= share;
            slope_V[code] -= 1.0f;
        } else {
            float* scores_K = scores_nK + n * targets;
            const float sum = exponentials(scores_K, highest(scores_K, targets), LOWEST_TARGET, scores_K, targets);
            const float part = 1.0f / sum;
            float expected = 0.0f;
#pragma omp simd reduction(+ : expected)
            for (int64_t k = 0; k < targets; ++k) {
                const float target = scores_K[k] * part;
                expected += target * logits_V[k];
                slope_V[k] = slope_V[k] * share - target;
            }
#pragma omp simd
            for (int64_t v = targets; v < vocabulary; ++v) slope_V[v] *= share;
            loss = log_norm - expected;
        }
        loss_3n[n] = loss;
        loss_3n[rows + n] = code_loss;
        loss_3n[2 * rows + n] = logits_V[code] == best ? 1.0f : 0.0f;
    }
}

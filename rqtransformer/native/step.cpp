// One new position through a stack of transformer blocks, for a few images at a time, in fp32.
//
// The arithmetic of `TransformerStack.forward`: x + attention(norm(x)), then x + mlp(norm(x)). Between two layers the
// images stand side by side (lanes.h); keys and values are kept as `KVCache` keeps them. All threads run every line;
// the loops marked "omp for" are shared out, and threads wait for each other behind them.
//
// Legend: see product.h; F features per attention head, L positions.

#include <algorithm>
#include <cmath>
#include <vector>

#include "functions.h"

template <int N>
static void normalize(const Norm& norm, const float* x_GCN, int64_t stride, int64_t groups, int64_t width,
                      float* out_GCN) {
    const float *weight = norm.weight, *bias = norm.bias;
    for (int64_t group = 0; group < groups; ++group) {
        const float* x_CN = x_GCN + group * stride;
        float* out_CN = out_GCN + group * width * N;
        Float<N> mean{}, variance{};
        if (bias) {
            for (int64_t c = 0; c < width; ++c) mean += load<N>(x_CN + c * N);
            mean /= static_cast<float>(width);
        }
        for (int64_t c = 0; c < width; ++c) {
            const Float<N> centered = load<N>(x_CN + c * N) - mean;
            variance = fused<N>(centered, centered, variance);
        }
        Float<N> scale = variance / static_cast<float>(width) + norm.eps;
        for (int lane = 0; lane < N; ++lane) scale[lane] = 1.0f / std::sqrt(scale[lane]);
        for (int64_t c = 0; c < width; ++c) {
            const Float<N> value = (load<N>(x_CN + c * N) - mean) * scale;
            store<N>(out_CN + c * N, fused<N>(value, all<N>(weight[c]), all<N>(bias ? bias[c] : 0.0f)));
        }
    }
}

template <int N>
static inline float sum_lanes(Float<N> value) {
    float parts[N];
    store<N>(parts, value);
    for (int half = N / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) parts[i] += parts[i + half];
    }
    return parts[0];
}

// Softmax, in place, without the division: returns what to divide by. `scores` has room for a vector behind.
static float exponentiate(float* scores, int64_t count, float highest) {
    const Float<WIDEST> none = all<WIDEST>(-INFINITY);
    store<WIDEST>(scores + count, none);  // e^-inf adds nothing
    Float<WIDEST> total{};
    for (int64_t l = 0; l < count; l += WIDEST) {
        const Float<WIDEST> weights = exponential<WIDEST>(load<WIDEST>(scores + l) - highest);
        store<WIDEST>(scores + l, weights);
        total += weights;
    }
    return sum_lanes<WIDEST>(total);
}

// One query against all keys, W features at a time: the weighted mean of the values, its numbers `out_step` apart.
template <int W>
static void attend_one(const float* query, const float* key_LF, const float* value_LF, int64_t count, int64_t features,
                       float slope, float* scores, float* out, int64_t out_step) {
    float highest = -INFINITY;
    for (int64_t l = 0; l < count; ++l) {
        Float<W> products{};
        for (int64_t f = 0; f < features; f += W) {
            __builtin_prefetch(value_LF + l * features + f);
            products = fused<W>(load<W>(query + f), load<W>(key_LF + l * features + f), products);
        }
        scores[l] = sum_lanes<W>(products) - slope * static_cast<float>(count - 1 - l);
        highest = scores[l] > highest ? scores[l] : highest;
    }
    const float share = 1.0f / exponentiate(scores, count, highest);
    for (int64_t f = 0; f < features; f += W) {
        Float<W> mean{};
        for (int64_t l = 0; l < count; ++l) {
            mean = fused<W>(load<W>(value_LF + l * features + f), all<W>(scores[l]), mean);
        }
        for (int i = 0; i < W; ++i) out[(f + i) * out_step] = mean[i] * share;
    }
}

// Stores the new keys and values of one layer and attends with the new queries.
template <int N>
static void attend(const Stack& stack, const Cache& cache, int64_t layer, int64_t images, const float* joint_GON,
                   int64_t joint_stride, float* out_GCN, float* scratch) {
    const int64_t features = stack.features, shared = stack.heads / stack.kv_heads;
    const int64_t keys_at = stack.heads * features, values_at = keys_at + stack.kv_heads * features;
    const int64_t half = images * stack.kv_heads * cache.max_length * features;
    const float shrink = 1.0f / std::sqrt(static_cast<float>(features));
    float* query = scratch;
#pragma omp for schedule(static)
    for (int64_t pair = 0; pair < stack.kv_heads * images; ++pair) {
        const int64_t kv_head = pair / images, image = pair % images;
        const float* joint = joint_GON + image / N * joint_stride + image % N;
        float* out = out_GCN + image / N * keys_at * N + image % N;
        float* key_LF = cache.keys_values + layer * 2 * half
                        + (image * stack.kv_heads + kv_head) * cache.max_length * features;
        float* value_LF = key_LF + half;
        for (int64_t f = 0; f < features; ++f) {
            key_LF[cache.length * features + f] = joint[(keys_at + kv_head * features + f) * N];
            value_LF[cache.length * features + f] = joint[(values_at + kv_head * features + f) * N];
        }
        for (int64_t head = kv_head * shared; head < (kv_head + 1) * shared; ++head) {
            for (int64_t f = 0; f < features; ++f) query[f] = joint[(head * features + f) * N] * shrink;
            const auto one = features % WIDEST == 0 ? attend_one<WIDEST> : attend_one<1>;
            one(query, key_LF, value_LF, cache.length + 1, features, stack.slopes ? stack.slopes[head] : 0.0f,
                scratch + features, out + head * features * N, N);
        }
    }
}

template <int N>
static void step(const Stack& stack, const Cache& cache, const float* x_BC, float* out_BC, int64_t images,
                 int threads) {
    const int64_t groups = (images + N - 1) / N, width = stack.width, inner = stack.heads * stack.features;
    const Layer& first = stack.layers[0];
    const int64_t stride = round_up(width, BLOCK) * N, joint_stride = first.joint.rounded_outputs() * N;
    const int64_t hidden_stride = first.up.rounded_outputs() * N;
    static thread_local std::vector<float> memory;
    memory.resize(groups * (stride + joint_stride + inner * N + hidden_stride));
    float *x_GCN = memory.data(), *joint_GON = x_GCN + groups * stride;
    float *attended_GCN = joint_GON + groups * joint_stride, *hidden_GON = attended_GCN + groups * inner * N;
#pragma omp parallel num_threads(threads)
    {
        static thread_local std::vector<float> own;
        own.resize(groups * width * N + 2 * stack.features + cache.length + 1 + WIDEST);
        float *normed_GCN = own.data(), *scratch = normed_GCN + groups * width * N;
#pragma omp single
        to_panels<N>(x_BC, images, width, x_GCN, stride);
        for (int64_t number = 0; number < stack.num_layers; ++number) {
            const Layer& layer = stack.layers[number];
            // Every thread norms for itself: that takes less time than waiting for another.
            normalize<N>(layer.norm1, x_GCN, stride, groups, width, normed_GCN);
            product<N>(layer.joint, normed_GCN, width * N, joint_GON, groups, NONE, false);
            attend<N>(stack, cache, number, images, joint_GON, joint_stride, attended_GCN, scratch);
            product<N>(layer.proj, attended_GCN, inner * N, x_GCN, groups, NONE, true);
            normalize<N>(layer.norm2, x_GCN, stride, groups, width, normed_GCN);
            product<N>(layer.up, normed_GCN, width * N, hidden_GON, groups, layer.activation, false);
            product<N>(layer.down, hidden_GON, hidden_stride, x_GCN, groups, NONE, true);
        }
    }
    from_panels<N>(x_GCN, stride, images, width, out_BC);
}

template <int N>
static void linear(const Map& map, const Norm* norm, const float* x_BI, float* y_BO, int64_t images,
                   Activation activation, bool add, int threads) {
    constexpr int64_t MOST = 16 * N;  // images at a time, so that the panels stay small
    const int64_t stride = map.rounded_outputs() * N;
    static thread_local std::vector<float> memory;
    memory.resize((std::min(images, MOST) + N - 1) / N * (map.inputs * N + stride));
    for (; images > 0; images -= MOST, x_BI += MOST * map.inputs, y_BO += MOST * map.outputs) {
        const int64_t here = std::min(images, MOST), groups = (here + N - 1) / N;
        float *x_GIN = memory.data(), *y_GON = x_GIN + groups * map.inputs * N;
        to_panels<N>(x_BI, here, map.inputs, x_GIN, map.inputs * N);
        if (norm) normalize<N>(*norm, x_GIN, map.inputs * N, groups, map.inputs, x_GIN);
        if (add) to_panels<N>(y_BO, here, map.outputs, y_GON, stride);
#pragma omp parallel num_threads(threads)
        product<N>(map, x_GIN, map.inputs * N, y_GON, groups, activation, add);
        from_panels<N>(y_GON, stride, here, map.outputs, y_BO);
    }
}

int64_t rq_block() { return BLOCK; }

void rq_step(const Stack* stack, const Cache* cache, const float* x_BC, float* out_BC, int64_t images, int threads) {
    WITH_LANES(images, step, *stack, *cache, x_BC, out_BC, images, threads);
}

void rq_linear(const Map* map, const Norm* norm, const float* x_BI, float* y_BO, int64_t images, int32_t activation,
               int32_t add, int threads) {
    WITH_LANES(images, linear, *map, norm, x_BI, y_BO, images, static_cast<Activation>(activation), add != 0, threads);
}

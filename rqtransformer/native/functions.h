// What the compiled functions take and do.
//
// Legend: see product.h; F features per attention head, V vocabulary; those of the training functions: between_products.cpp.
#pragma once

#include "product.h"

constexpr int64_t NOT_DRAWN = -1;  // the code where there is no distribution; `finite_draws.py`

struct Norm {
    const float *weight, *bias;  // without a bias the mean is not taken off either
    float eps;
};

struct Layer {
    Norm norm1, norm2;
    Map joint, proj, up, down;  // joint: query, key and value below each other
    Activation activation;
};

struct Stack {
    int64_t num_layers, width, heads, kv_heads, features;
    const Layer* layers;
    const float* slopes;  // of attention scores per unit of distance, one per head; or null
};

struct Cache {
    float* keys_values;  // (layers, 2, B, kv_heads, max_length, F)
    int64_t max_length, length;
};

extern "C" {

// Numbers per block of a weight.
int64_t rq_block();

// x (B, C) -> out (B, C); the cache takes the keys and values of position `length`.
void rq_step(const Stack* stack, const Cache* cache, const float* x_BC, float* out_BC, int64_t images, int threads);

// y = activation(map(norm(x))), or y += that; the norm may be null.
void rq_linear(const Map* map, const Norm* norm, const float* x_BI, float* y_BO, int64_t images, int32_t activation,
               int32_t add, int threads);

// Codes from logits (B, V), of which every row starts `stride` after the one before.
void rq_draw(const float* logits_BV, int64_t stride, const double* uniform_B, int64_t* code_B, int64_t images,
             int64_t vocabulary, float temperature, int64_t top_k, double top_p, int threads);

// out = residual (which may be null) + scale * x where draws >= first_kept, residual + 0 elsewhere.
void rq_drop(const float* x, const int16_t* draws, int32_t first_kept, float scale, const float* residual, float* out,
             int64_t count, int threads);

// Causal attention among up to 8 codes; the weights are kept for the way back.
void rq_attend_close(const float* query_NLAF, const float* key_NLAF, const float* value_NLAF, float* out_NLAF,
                     float* weights_NALL, int64_t stacks, int64_t length, int64_t heads, int64_t features, int threads);
void rq_attend_close_slopes(const float* query_NLAF, const float* key_NLAF, const float* value_NLAF,
                            const float* weights_NALL, const float* slope_NLAF, float* query_slope_NLAF,
                            float* key_slope_NLAF, float* value_slope_NLAF, int64_t stacks, int64_t length,
                            int64_t heads, int64_t features, int threads);

// Of every row: cross entropy against softmax(scores), or against its code where there are no scores; negative
// log-likelihood of the code; whether it has the highest logit; the slope of the first. Strides count numbers. The
// scores are overwritten.
void rq_cross_entropy_rows(const float* logits_nV, int64_t stride, const int64_t* codes_n, int64_t codes_stride,
                           float* scores_nK, int64_t targets, float eps, float* slope_nV, int64_t slope_stride,
                           float* loss_3n, int64_t rows, int64_t vocabulary, int threads);

// A number of this many bytes. Another word somewhere always gives another number, several others give the same one by
// a chance of 2^-32 at most.
uint64_t rq_digest(const unsigned char* bytes, int64_t count);
}

// What the compiled functions take and do.
//
// Legend: see product.h; F features per attention head, V vocabulary.
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

// A number of this many bytes. Another word somewhere always gives another number, several others give the same one by
// a chance of 2^-32 at most.
uint64_t rq_digest(const unsigned char* bytes, int64_t count);
}

// A number that changes when bytes change. Every lane is a bijection of each word it takes. The shift brings high bits
// down: without it two signs that flip in one lane, as in a negated weight, would cancel.

#include <cstring>
#include <initializer_list>

#include "functions.h"

typedef uint32_t Lanes __attribute__((vector_size(32)));
constexpr int64_t STRIDE = 4 * sizeof(Lanes);
constexpr uint32_t FACTOR = 0x9E3779B1u;  // odd
constexpr uint64_t JOIN = 0x9E3779B97F4A7C15u;

static inline Lanes words_at(const unsigned char* bytes) {
    Lanes words;
    std::memcpy(&words, bytes, sizeof words);
    return words;
}

static inline Lanes mixed(Lanes lanes, const unsigned char* bytes) {
    lanes = (lanes ^ words_at(bytes)) * FACTOR;
    return lanes ^ lanes >> 15;
}

extern "C" uint64_t rq_digest(const unsigned char* bytes, int64_t count) {
    Lanes a{}, b{}, c{}, d{};
    unsigned char rest[STRIDE] = {};
    const int64_t whole = count / STRIDE * STRIDE;
    std::memcpy(rest, bytes + whole, count - whole);
    for (int64_t done = 0; done <= whole; done += STRIDE) {
        const unsigned char* from = done < whole ? bytes + done : rest;
        a = mixed(a, from), b = mixed(b, from + 32), c = mixed(c, from + 64), d = mixed(d, from + 96);
    }
    uint64_t digest = static_cast<uint64_t>(count);
    for (const Lanes& chain : {a, b, c, d}) {
        for (int64_t lane = 0; lane < 8; ++lane) {
            digest = (digest ^ chain[lane]) * JOIN;
            digest ^= digest >> 29;
        }
    }
    return digest;
}

// A number that changes when bytes change: lanes of multiply-and-add, each a bijection of every word it takes.

#include <cstring>

#include "functions.h"

constexpr int64_t LANES = 32;
constexpr uint32_t FACTOR = 0x9E3779B1u;  // odd
constexpr uint64_t JOIN = 0x9E3779B97F4A7C15u;

static void take(uint32_t* lanes, const unsigned char* bytes) {
    uint32_t words[LANES];
    std::memcpy(words, bytes, sizeof words);
    for (int64_t lane = 0; lane < LANES; ++lane) lanes[lane] = lanes[lane] * FACTOR + words[lane];
}

extern "C" uint64_t rq_digest(const unsigned char* bytes, int64_t count) {
    uint32_t lanes[LANES] = {};
    constexpr int64_t block = LANES * 4;
    int64_t done = 0;
    for (; done + block <= count; done += block) take(lanes, bytes + done);
    unsigned char rest[block] = {};
    std::memcpy(rest, bytes + done, count - done);
    take(lanes, rest);
    uint64_t digest = static_cast<uint64_t>(count);
    for (uint32_t lane : lanes) digest = (digest ^ lane) * JOIN ^ digest >> 29;
    return digest;
}

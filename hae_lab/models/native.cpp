// Sparse attention of one head in single precision: blocks of 32 queries, the keys that a block reads together, and the
// keys that each query reads alone, under one softmax. Compiled and called by native.py.
//
// Where a block reads together, the lanes of a vector are queries: keys may lie anywhere, and what is hidden, the
// largest score and the sum of a softmax are vertical. Where a query reads alone, the lanes are channels.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

constexpr int LANES = 16, SIDE = 2, BLOCK = SIDE * LANES;  // BLOCK queries lie in SIDE vectors
typedef float Vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int8_t Bytes __attribute__((vector_size(LANES), aligned(1), may_alias));

inline Vec load(const float* from) { return *reinterpret_cast<const Vec*>(from); }
inline void store(float* to, Vec x) { *reinterpret_cast<Vec*>(to) = x; }
inline Vec fill(float x) { return x - Vec{}; }
inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }

// exp of x <= 0: 2^n times a polynomial in what is left of x, between -ln 2 / 2 and ln 2 / 2; 0 below -87
inline Vec exponential(Vec x) {
    const float round = 12582912.0f;  // 1.5 * 2^23: a number added to it is rounded, and stands in its lowest bits
    const Vec shifted = x * 1.44269504f + round;
    const Ints power = (Ints)shifted - 0x4B400000;
    const Vec n = shifted - round;
    const Vec r = x - n * 0.693359375f + n * 2.12194440e-4f;  // ln 2 in two parts
    Vec sum = r / 5040.0f + 1.0f / 720.0f;
    for (float factor : {1.0f / 120.0f, 1.0f / 24.0f, 1.0f / 6.0f, 0.5f, 1.0f, 1.0f}) sum = sum * r + factor;
    return x < fill(-87.0f) ? Vec{} : (Vec)((Ints)sum + (power << 23));
}

// lane i: the sum of vector i
inline Vec sums(Vec* x) {
    for (int count = LANES / 2; count >= 1; count /= 2)
        for (int i = 0; i < count; i++) {
            const Vec a = x[2 * i], b = x[2 * i + 1];
            x[i] = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
                   __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
        }
    return x[0];
}

inline float sum(Vec x) {
    float total = 0;
    for (int lane = 0; lane < LANES; lane++) total += x[lane];
    return total;
}

struct Plan {
    int m, n, r, blocks;     // queries, keys, keys of a query's own, blocks
    const int32_t* begins;   // (blocks + 1) where the keys of each block begin
    const int32_t* keys;     // of all blocks
    const int8_t* hidden;    // (keys of all blocks, BLOCK) -1 for what a query may not see
    const int32_t* columns;  // (m, r) keys of a query's own, -1 for none; r is a multiple of LANES

    int width(int block) const { return begins[block + 1] - begins[block]; }
    int rows(int block) const { return std::min(BLOCK, m - block * BLOCK); }
};

// A matrix of rows of D vectors each, and products of it with what a block or a query reads.
template <int D>
struct Rows {
    static constexpr int d = D * LANES;

    // (rows, d) -> (d, BLOCK), zeros beyond the rows
    static void transpose(const float* x, int rows, float* out) {
        for (int c = 0; c < d; c++)
            for (int i = 0; i < BLOCK; i++) out[c * BLOCK + i] = i < rows ? x[i * d + c] : 0.0f;
    }

    // J keys, queries (d, BLOCK) -> scores (J, BLOCK)
    template <int J>
    static void score_some(const float* x, const float* y, const int32_t* keys, float* out) {
        Vec total[J][SIDE] = {};
        const float* row[J];
        for (int j = 0; j < J; j++) row[j] = y + int64_t(keys[j]) * d;
        for (int c = 0; c < d; c++)
            for (int j = 0; j < J; j++)
                for (int w = 0; w < SIDE; w++) total[j][w] += row[j][c] * load(x + c * BLOCK + w * LANES);
        for (int j = 0; j < J; j++)
            for (int w = 0; w < SIDE; w++) store(out + j * BLOCK + w * LANES, total[j][w]);
    }

    static void score(const float* x, const float* y, const int32_t* keys, int count, float* out) {
        constexpr int J = 12;  // with SIDE vectors each: as many sums as registers hold
        int j = 0;
        for (; j + J <= count; j += J) score_some<J>(x, y, keys + j, out + j * BLOCK);
        for (; j < count; j++) score_some<1>(x, y, keys + j, out + j * BLOCK);
    }

    // weights (count, BLOCK) -> sums of the keys' rows (d, BLOCK)
    static void weigh(const float* weights, const float* y, const int32_t* keys, int count, float* out) {
        constexpr int C = 8;
        for (int c = 0; c < d; c += C) {
            Vec total[C][SIDE] = {};
            for (int j = 0; j < count; j++) {
                const float* row = y + int64_t(keys[j]) * d + c;
                for (int i = 0; i < C; i++)
                    for (int w = 0; w < SIDE; w++) total[i][w] += row[i] * load(weights + j * BLOCK + w * LANES);
            }
            for (int i = 0; i < C; i++)
                for (int w = 0; w < SIDE; w++) store(out + (c + i) * BLOCK + w * LANES, total[i][w]);
        }
    }

    template <int J>
    static void spread_some(const float* weights, const float* x, int rows, const int32_t* keys, float* y) {
        Vec total[J][D];
        for (int j = 0; j < J; j++)
            for (int e = 0; e < D; e++) total[j][e] = load(y + int64_t(keys[j]) * d + e * LANES);
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < J; j++)
                for (int e = 0; e < D; e++) total[j][e] += weights[j * BLOCK + i] * load(x + i * d + e * LANES);
        for (int j = 0; j < J; j++)
            for (int e = 0; e < D; e++) store(y + int64_t(keys[j]) * d + e * LANES, total[j][e]);
    }

    // weights (count, BLOCK), queries x (rows, d): what the keys' rows of y grow by
    static void spread(const float* weights, const float* x, int rows, const int32_t* keys, int count, float* y) {
        constexpr int J = D <= 2 ? 8 : D <= 4 ? 4 : 2;
        int j = 0;
        for (; j + J <= count; j += J) spread_some<J>(weights + j * BLOCK, x, rows, keys + j, y);
        for (; j < count; j++) spread_some<1>(weights + j * BLOCK, x, rows, keys + j, y);
    }

    // one query x (d), its own r columns -> their scores
    static void score_own(const float* x, const float* y, const int32_t* columns, int r, float* out) {
        for (int p = 0; p < r; p += LANES) {
            Vec products[LANES] = {};
            for (int lane = 0; lane < LANES; lane++) {
                const float* row = y + int64_t(std::max(columns[p + lane], 0)) * d;
                for (int e = 0; e < D; e++) products[lane] += load(x + e * LANES) * load(row + e * LANES);
            }
            store(out + p, sums(products));
        }
    }

    // the sum of its own columns' rows, added to total (D vectors)
    static void weigh_own(const float* weights, const float* y, const int32_t* columns, int r, Vec* total) {
        Vec even[D] = {}, odd[D] = {};  // two sums, so that an addition need not wait for the one before
        for (int p = 0; p < r; p += 2) {
            const float* first = y + int64_t(std::max(columns[p], 0)) * d;
            const float* second = y + int64_t(std::max(columns[p + 1], 0)) * d;
            for (int e = 0; e < D; e++) {
                even[e] += weights[p] * load(first + e * LANES);
                odd[e] += weights[p + 1] * load(second + e * LANES);
            }
        }
        for (int e = 0; e < D; e++) total[e] += even[e] + odd[e];
    }

    // what the rows of its own columns grow by
    static void spread_own(const float* weights, const float* x, const int32_t* columns, int r, float* y) {
        for (int p = 0; p < r; p++) {
            if (columns[p] < 0) continue;
            float* row = y + int64_t(columns[p]) * d;
            for (int e = 0; e < D; e++) store(row + e * LANES, load(row + e * LANES) + weights[p] * load(x + e * LANES));
        }
    }
};

// One block of queries at a time: its weights, and what follows from them.
template <int D>
class Block {
    using R = Rows<D>;
    static constexpr int d = R::d;
    const Plan& plan;
    int first = 0, rows = 0, count = 0;  // first query, queries, keys that they read together
    const int32_t* keys = nullptr;
    std::vector<float> queries, towards, weights, slopes, own, own_slopes, sideways;
    float share[BLOCK];  // one over the sum of each query's weights

    const int32_t* columns(int i) const { return plan.columns + int64_t(first + i) * plan.r; }

    void column_of(const float* x, int i, Vec* out) const {  // (d, BLOCK) -> D vectors of one query
        float column[d];
        for (int c = 0; c < d; c++) column[c] = x[c * BLOCK + i];
        for (int e = 0; e < D; e++) out[e] = load(column + e * LANES);
    }

    // scores of all keys, -infinity where hidden, and the largest of each query
    void score(const float* q, const float* k, int block, float* top) {
        const int8_t* hidden = plan.hidden + int64_t(plan.begins[block]) * BLOCK;
        R::score(queries.data(), k, keys, count, weights.data());
        Vec largest[SIDE] = {fill(-1e30f), fill(-1e30f)};  // finite: no NaN for a query that sees nothing
        for (int j = 0; j < count * SIDE; j++) {
            const Ints hides = __builtin_convertvector(*reinterpret_cast<const Bytes*>(hidden + j * LANES), Ints);
            const Vec x = hides != 0 ? fill(-INFINITY) : load(&weights[j * LANES]);
            store(&weights[j * LANES], x);
            largest[j % SIDE] = larger(largest[j % SIDE], x);
        }
        for (int w = 0; w < SIDE; w++) store(top + w * LANES, largest[w]);
        for (int i = 0; i < rows; i++) {
            Vec best = fill(top[i]);
            R::score_own(q + i * d, k, columns(i), plan.r, &own[i * plan.r]);
            for (int p = 0; p < plan.r; p += LANES) {
                const Ints none = *reinterpret_cast<const Ints*>(columns(i) + p) < 0;
                const Vec x = none ? fill(-INFINITY) : load(&own[i * plan.r + p]);
                store(&own[i * plan.r + p], x);
                best = larger(best, x);
            }
            for (int lane = 0; lane < LANES; lane++) top[i] = std::max(top[i], best[lane]);
        }
    }

    // scores -> weights, not yet divided by their sum
    void weigh(const float* top) {
        Vec total[SIDE] = {};
        for (int j = 0; j < count * SIDE; j++) {
            const Vec weight = exponential(load(&weights[j * LANES]) - load(top + j % SIDE * LANES));
            store(&weights[j * LANES], weight);
            total[j % SIDE] += weight;
        }
        for (int w = 0; w < SIDE; w++) store(share + w * LANES, total[w]);
        for (int i = 0; i < rows; i++) {
            Vec alone{};
            for (float* at = &own[i * plan.r]; at < &own[(i + 1) * plan.r]; at += LANES) {
                store(at, exponential(load(at) - top[i]));
                alone += load(at);
            }
            share[i] += sum(alone);
        }
        for (float& x : share) x = x > 0 ? 1 / x : 0;
    }

public:
    explicit Block(const Plan& plan) : plan(plan), queries(d * BLOCK), towards(d * BLOCK), sideways(d * BLOCK) {
        int most = 0;
        for (int block = 0; block < plan.blocks; block++) most = std::max(most, plan.width(block));
        for (auto* scores : {&weights, &slopes}) scores->resize(size_t(most) * BLOCK);
        own.resize(size_t(plan.r) * BLOCK + 1);
        own_slopes.resize(plan.r + 1);
    }

    void begin(int block, const float* q, const float* k) {
        first = block * BLOCK, rows = plan.rows(block), count = plan.width(block), keys = plan.keys + plan.begins[block];
        float top[BLOCK];
        R::transpose(q + int64_t(first) * d, rows, queries.data());
        score(q + int64_t(first) * d, k, block, top);
        weigh(top);
    }

    void forward(const float* v, float* out) {
        R::weigh(weights.data(), v, keys, count, sideways.data());
        for (int i = 0; i < rows; i++) {
            Vec total[D];
            column_of(sideways.data(), i, total);
            R::weigh_own(&own[i * plan.r], v, columns(i), plan.r, total);
            for (int e = 0; e < D; e++) store(out + int64_t(first + i) * d + e * LANES, total[e] * share[i]);
        }
    }

    // the gradients of this block's queries, and what those of keys and values grow by
    void backward(const float* grad, const float* q, const float* k, const float* v, const float* out, float* grad_q,
                  float* grad_k, float* grad_v) {
        grad += int64_t(first) * d, q += int64_t(first) * d, out += int64_t(first) * d, grad_q += int64_t(first) * d;
        float inner[BLOCK] = {};  // weights times their gradients, summed
        for (int i = 0; i < rows; i++) {
            Vec products{};
            for (int c = i * d; c < (i + 1) * d; c += LANES) products += load(grad + c) * load(out + c);
            inner[i] = sum(products);
        }
        R::transpose(grad, rows, towards.data());
        R::score(towards.data(), v, keys, count, slopes.data());
        for (int j = 0; j < count * SIDE; j++) {
            const int w = j % SIDE * LANES;
            const Vec weight = load(&weights[j * LANES]) * load(share + w);
            store(&weights[j * LANES], weight);
            store(&slopes[j * LANES], weight * (load(&slopes[j * LANES]) - load(inner + w)));
        }
        R::weigh(slopes.data(), k, keys, count, sideways.data());
        R::spread(slopes.data(), q, rows, keys, count, grad_k);
        R::spread(weights.data(), grad, rows, keys, count, grad_v);
        for (int i = 0; i < rows; i++) backward_own(i, inner[i], grad + i * d, q + i * d, k, v, grad_q + i * d, grad_k, grad_v);
    }

private:
    void backward_own(int i, float inner, const float* grad, const float* q, const float* k, const float* v,
                      float* grad_q, float* grad_k, float* grad_v) {
        Vec total[D];
        column_of(sideways.data(), i, total);
        float* weight = &own[i * plan.r];
        R::score_own(grad, v, columns(i), plan.r, own_slopes.data());
        for (int p = 0; p < plan.r; p += LANES) {
            store(weight + p, load(weight + p) * share[i]);
            store(&own_slopes[p], load(weight + p) * (load(&own_slopes[p]) - inner));
        }
        R::weigh_own(own_slopes.data(), k, columns(i), plan.r, total);
        R::spread_own(own_slopes.data(), q, columns(i), plan.r, grad_k);
        R::spread_own(weight, grad, columns(i), plan.r, grad_v);
        for (int e = 0; e < D; e++) store(grad_q + e * LANES, total[e]);
    }
};

}  // namespace

// WIDTH, how many vectors hold the channels of a head, comes from the compiler's command line.

extern "C" void hae_forward(int heads, Plan plan, const float* q, const float* k, const float* v, float* out) {
    Block<WIDTH> block(plan);
    for (int64_t head = 0; head < heads; head++) {
        const int64_t query = head * plan.m * WIDTH * LANES, key = head * plan.n * WIDTH * LANES;
        for (int index = 0; index < plan.blocks; index++) {
            block.begin(index, q + query, k + key);
            block.forward(v + key, out + query);
        }
    }
}

extern "C" void hae_backward(int heads, Plan plan, const float* grad, const float* q, const float* k, const float* v,
                             const float* out, float* grad_q, float* grad_k, float* grad_v) {
    Block<WIDTH> block(plan);
    for (int64_t head = 0; head < heads; head++) {
        const int64_t query = head * plan.m * WIDTH * LANES, key = head * plan.n * WIDTH * LANES;
        for (int index = 0; index < plan.blocks; index++) {
            block.begin(index, q + query, k + key);
            block.backward(grad + query, q + query, k + key, v + key, out + query, grad_q + query, grad_k + key,
                           grad_v + key);
        }
    }
}

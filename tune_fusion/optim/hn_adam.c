/* HN_Adam in one pass: a step reads each gradient once and updates moments and parameter in place.
 *
 * The equations and their source are those of adaptive_norm.py; numbers agree to rounding. hn_adam_kernel.py
 * compiles this file where it runs, for the processor it runs on. Plain C, so that it takes half a second: loops
 * without calls and branches (every choice is a `?:`), which compilers turn into vector instructions, and short
 * chains of products (Estrin's scheme).
 */
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>

/* Elements are worked on in blocks of this many, the last one filled up: an element's numbers depend neither
 * on its place in a tensor nor on where threads divide it. */
#define BLOCK 64
#define MOST_THREADS 64

/* One parameter, and what its update reads and writes; all of the same layout in memory. */
typedef struct {
    float *param;
    const float *grad;
    float *m;
    float *v;
    float *v_max; /* NULL where the norm cannot fall below 2 */
    int64_t count;
} Tensor;

typedef struct {
    float lr, eps, lambda0;
    float beta2, new1, new2; /* β2, 1 - β1 and 1 - β2, which float32 cannot make of each other */
    float sign;  /* of the gradient: -1 to climb */
    float decay; /* times the parameter, added to the gradient */
    float keep;  /* what decoupled weight decay leaves of the parameter */
    int32_t root;
    int32_t observed;
} Options;

static inline float bits_to_float(int32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline int32_t float_to_bits(float value) {
    int32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

#define INLINE static inline __attribute__((always_inline))

/* x^y for x >= 0 and y in [1/4, 4], as 2^(y log2 x); the whole part of log2 x takes part in the product exactly, so
 * that normal results are good to 6e-7.
 *
 * any_x: x may also be infinite, 0 or denormal; without, an infinite x is as 2^128, and one that is 0 or
 * denormal as something below 2^-126. any_result: results may overflow, and underflow gradually; without, they
 * must stay below 2^128, and are 0 below 2^-126. */
INLINE float power(float x, float y, const int any_x, const int any_result) {
    int tiny = any_x && x < 0x1p-126f;
    float scaled = tiny ? x * 0x1p24f : x;
    int32_t bits = float_to_bits(scaled) - 0x3f3504f3; /* the mantissa from [sqrt(1/2), sqrt(2)) */
    float exponent = (float)(bits >> 23) - (tiny ? 24.0f : 0.0f);
    float t = bits_to_float((bits & 0x007fffff) + 0x3f3504f3) - 1.0f;
    float t2 = t * t, t4 = t2 * t2;
    float first4 = (1.442695f + t * -0.72134733f) + t2 * (0.48091063f + t * -0.36070368f);
    float next4 = (0.28791624f + t * -0.23894483f) + t2 * (0.21571562f + t * -0.20726968f);
    float fraction = t * (first4 + t4 * (next4 + t4 * 0.1258369f));
    /* y log2 x = whole + rest, |rest| <= 1/2 */
    float high = y * exponent;
    float low = fmaf(y, exponent, -high);
    float whole = rintf(fmaf(y, fraction, high));
    float rest = (high - whole) + fmaf(y, fraction, low);
    float rest2 = rest * rest;
    float value = (1.0000001f + rest * 0.69314694f) + rest2 * (0.2402212f + rest * 0.05550713f);
    value = value + rest2 * rest2 * (0.009675541f + rest * 0.0013276471f);
    if (any_result) { /* in two steps */
        whole = whole > -254.0f ? whole : -254.0f;
        whole = whole < 254.0f ? whole : 254.0f;
        int32_t n = (int32_t)whole, half = n >> 1;
        value = value * bits_to_float((half + 127) << 23) * bits_to_float((n - half + 127) << 23);
    } else {
        whole = whole > -126.0f ? whole : -126.0f;
        value = 2.0f * value * bits_to_float(((int32_t)whole + 126) << 23);
    }
    if (any_x) {
        value = x == 0.0f ? 0.0f : value;
        value = x < INFINITY ? value : x;
    }
    return value;
}

INLINE void block(
    const Options *o, float *restrict param, const float *restrict grad, float *restrict m, float *restrict v,
    float *restrict v_max, float *restrict norms, const int root, const int amsgrad
) {
    for (int i = 0; i < BLOCK; i++) {
        float p = param[i] * o->keep;
        float g = o->sign * grad[i] + o->decay * p;
        float size = fabsf(g), past = fabsf(m[i]);
        float ratio = past / (past > size ? past : size);
        float norm = o->lambda0 - (ratio == ratio ? ratio : 0.0f); /* 0/0 counts as 0 */
        float inverse = 1.0f / norm;
        float first = m[i] + o->new1 * (g - m[i]);
        float second;
        if (root) {
            float old = v[i];
            float larger = old > size ? old : size, smaller = old > size ? size : old;
            float share = smaller / larger;
            float weight = old > size ? o->beta2 : o->new2; /* of the larger one */
            float mean = power(share == share ? share : 0.0f, norm, 0, 0) * (1.0f - weight) + weight;
            second = larger * power(mean, inverse, 0, 0);
        } else {
            second = o->beta2 * v[i] + o->new2 * power(size, norm, 0, 1);
        }
        float divisor = second;
        if (amsgrad) {
            float largest = v_max[i] > second ? v_max[i] : second;
            v_max[i] = norm < 2.0f ? largest : v_max[i];
            divisor = norm < 2.0f ? largest : second;
        }
        if (!root) divisor = power(divisor, inverse, 1, 0);
        m[i] = first;
        v[i] = second;
        param[i] = p - o->lr * (first / (divisor + o->eps));
        norms[i] = norm;
    }
}

/* totals[0] gains how many norms are below 2, totals[1] their sum. */
static void observe(const float *norms, int64_t count, double *totals) {
    for (int64_t i = 0; i < count; i++) {
        totals[0] += norms[i] < 2.0f;
        totals[1] += norms[i];
    }
}

INLINE void update(
    const Options *o, const Tensor *t, int64_t from, int64_t to, double *totals, const int root, const int amsgrad
) {
    float norms[BLOCK];
    int64_t i = from;
    for (; i + BLOCK <= to; i += BLOCK) {
        float *largest = amsgrad ? t->v_max + i : NULL;
        block(o, t->param + i, t->grad + i, t->m + i, t->v + i, largest, norms, root, amsgrad);
        if (o->observed) observe(norms, BLOCK, totals);
    }
    if (i == to) return;
    float filled[5][BLOCK] = {{0}};
    float *tensors[5] = {t->param, (float *)t->grad, t->m, t->v, t->v_max};
    size_t bytes = (size_t)(to - i) * sizeof(float);
    for (int k = 0; k < 4 + amsgrad; k++) memcpy(filled[k], tensors[k] + i, bytes);
    block(o, filled[0], filled[1], filled[2], filled[3], filled[4], norms, root, amsgrad);
    for (int k = 0; k < 4 + amsgrad; k++)
        if (k != 1) memcpy(tensors[k] + i, filled[k], bytes);
    if (o->observed) observe(norms, to - i, totals);
}

/* Elements from..to of a tensor; `from` is a multiple of BLOCK. */
static void part(const Options *o, const Tensor *t, int64_t from, int64_t to, double *totals) {
    if (o->root && t->v_max) update(o, t, from, to, totals, 1, 1);
    else if (o->root) update(o, t, from, to, totals, 1, 0);
    else if (t->v_max) update(o, t, from, to, totals, 0, 1);
    else update(o, t, from, to, totals, 0, 0);
}

/* One thread's share: of all blocks, one tensor's after the other's, those from `first` to before `last`. */
typedef struct {
    const Options *options;
    const Tensor *tensors;
    int64_t n, first, last;
    double *totals; /* two for each tensor */
} Share;

static void *work(void *argument) {
    const Share *share = argument;
    int64_t before = 0;
    for (int64_t k = 0; k < share->n && before < share->last; k++) {
        const Tensor *t = &share->tensors[k];
        int64_t blocks = (t->count + BLOCK - 1) / BLOCK;
        int64_t first = share->first > before ? share->first - before : 0;
        int64_t last = share->last < before + blocks ? share->last - before : blocks;
        if (first < last) {
            int64_t to = last * BLOCK < t->count ? last * BLOCK : t->count;
            part(share->options, t, first * BLOCK, to, share->totals + 2 * k);
        }
        before += blocks;
    }
    return NULL;
}

/* Step `n` tensors in `threads` threads; `totals` has 2 n zeros for each thread, see `observe`. */
void hn_adam(const Tensor *tensors, int64_t n, const Options *options, double *totals, int64_t threads) {
    int64_t blocks = 0;
    for (int64_t k = 0; k < n; k++) blocks += (tensors[k].count + BLOCK - 1) / BLOCK;
    threads = threads > MOST_THREADS ? MOST_THREADS : threads;
    Share shares[MOST_THREADS];
    pthread_t started[MOST_THREADS];
    int runs[MOST_THREADS] = {0};
    for (int64_t t = 0; t < threads; t++)
        shares[t] = (Share){options, tensors, n, blocks * t / threads, blocks * (t + 1) / threads, totals + 2 * n * t};
    for (int64_t t = 1; t < threads; t++) runs[t] = pthread_create(&started[t], NULL, work, &shares[t]) == 0;
    work(&shares[0]);
    for (int64_t t = 1; t < threads; t++) {
        if (runs[t]) pthread_join(started[t], NULL);
        else work(&shares[t]); /* the system gave no thread */
    }
}

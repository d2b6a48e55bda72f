// Forward and backward pass of a stack of blocks, fused, on a CPU. Built by build.py, bound by
// stack.py.
//
// A block is a convolution over time (3 taps, dilated, padded with zeros), layer norm over
// channels, in some blocks max-pooling by 2, and ReLU. After the last block: the average over time,
// dropout by a given mask, and a head of one linear layer or of two with a ReLU between them: one
// logit.
//
// Layout. The vector lanes run along time. A group of windows lies side by side in one row per
// channel, with zeros between neighbours, so that a convolution reads its padding from there and
// short windows fill the vectors. A row is passed over in tiles of a few vectors: the convolution of
// WIDE vectors stays in registers, and norm, pooling and ReLU find the tile in the cache.
//
// Layer norm subtracts the mean over channels. Subtracting it from the filters gives the same
// without a pass over the activations, so that only the standard deviation remains.
//
// Order of sums. Nothing depends on the number of threads: the windows of a group are fixed by the
// shape, groups are dealt to SLOTS sums in turn, and the sums are added in order. Build without
// -ffast-math and with -ffp-contract=off: where a product and a sum are fused is written here, so
// that compilers and optimisation levels agree to the last bit at an equal number of lanes.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <type_traits>
#include <vector>

#include <unistd.h>

#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__)) || defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

// -- vectors

#if defined(__AVX512F__)
constexpr int LANES = 16, WIDE = 4, REGISTERS = 32;
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int LANES = 8, WIDE = 2, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int LANES = 4, WIDE = 4, REGISTERS = 32;
#else
constexpr int LANES = 4, WIDE = 2, REGISTERS = 16;
#endif
#if defined(__AVX512F__) || defined(__aarch64__)
#define UNROLL_TAPS _Pragma("GCC unroll 3")
#else  // GCC would hold more than 16 registers do
#define UNROLL_TAPS _Pragma("GCC unroll 1")
#endif
constexpr int LONG = 4;         // vectors of a forward tile
constexpr int DEEP = 4;         // output channels of one tile
constexpr int PAIR = WIDE / 2;  // input channels of one tile of the filters' gradient
constexpr int SLOTS = 16;       // sums of gradients, and so the most threads
constexpr long GROUP_SAMPLES = 1024;  // windows share a group up to about this length
constexpr long SHARED_WORK = 16000000;  // products of a forward pass that are worth helpers
constexpr float EPSILON = 1e-5f;

typedef float V __attribute__((vector_size(4 * LANES)));
typedef int32_t M __attribute__((vector_size(4 * LANES)));  // lanes of a mask: 0 or -1
typedef float Unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t UnalignedMask __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))

INLINE V load(const float* from) { return (V) * (const Unaligned*)from; }
INLINE void store(float* to, V value) { *(Unaligned*)to = (Unaligned)value; }
// Loaded once: compilers would read it again for every product, and loads take longest.
INLINE V in_register(V value) {
#if defined(__AVX512F__)
  asm("" : "+v"(value));
#elif defined(__SSE2__)
  asm("" : "+x"(value));
#elif defined(__aarch64__)
  asm("" : "+w"(value));
#endif
  return value;
}
INLINE M load_mask(const int32_t* from) { return (M) * (const UnalignedMask*)from; }
INLINE V splat(float value) { return value - V{}; }  // no operation; + V{} is one: -0 becomes 0
INLINE V keep(M mask, V value) { return (V)((M)value & mask); }
INLINE V choose(M mask, V yes, V no) { return (V)(((M)yes & mask) | ((M)no & ~mask)); }

#if defined(__AVX512F__)
INLINE V fma(V a, V b, V c) { return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
INLINE V root(V a) { return (V)_mm512_sqrt_ps((__m512)a); }
INLINE bool any(M mask) { return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0; }
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif defined(__AVX2__) && defined(__FMA__)
INLINE V fma(V a, V b, V c) { return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
INLINE V root(V a) { return (V)_mm256_sqrt_ps((__m256)a); }
INLINE bool any(M mask) { return !_mm256_testz_si256((__m256i)mask, (__m256i)mask); }
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define ODD 1, 3, 5, 7, 9, 11, 13, 15
#define LOW 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#if defined(__aarch64__)
INLINE V fma(V a, V b, V c) { return (V)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
INLINE V root(V a) { return (V)vsqrtq_f32((float32x4_t)a); }
INLINE bool any(M mask) { return vmaxvq_u32((uint32x4_t)mask) != 0; }
#elif defined(__SSE2__)
INLINE V fma(V a, V b, V c) { return a * b + c; }
INLINE V root(V a) { return (V)_mm_sqrt_ps((__m128)a); }
INLINE bool any(M mask) { return _mm_movemask_ps((__m128)mask) != 0; }
#else
INLINE V fma(V a, V b, V c) { return a * b + c; }
INLINE V root(V a) {
  for (int lane = 0; lane < LANES; ++lane) a[lane] = std::sqrt(a[lane]);
  return a;
}
INLINE bool any(M mask) {
  for (int lane = 0; lane < LANES; ++lane)
    if (mask[lane]) return true;
  return false;
}
#endif
#define EVEN 0, 2, 4, 6
#define ODD 1, 3, 5, 7
#define LOW 0, 4, 1, 5
#define HIGH 2, 6, 3, 7
#endif

INLINE V even(V a, V b) { return __builtin_shufflevector(a, b, EVEN); }
INLINE V odd(V a, V b) { return __builtin_shufflevector(a, b, ODD); }
INLINE V low(V a, V b) { return __builtin_shufflevector(a, b, LOW); }    // a0 b0 a1 b1 ...
INLINE V high(V a, V b) { return __builtin_shufflevector(a, b, HIGH); }  // ... the second half

// Sums over the lanes of `count` vectors, neighbours first; sum number i lands in lane i of the
// result, counted through its vectors.
template <int COUNT>
INLINE void sum_lanes(V* a) {
  int count = COUNT;
#pragma GCC unroll 4
  for (int width = 1; width < LANES; width *= 2) {
    const int half = (count + 1) / 2;
#pragma GCC unroll 16
    for (int i = 0; i < half; ++i) {
      const V& second = a[2 * i + 1 < count ? 2 * i + 1 : 2 * i];
      a[i] = even(a[2 * i], second) + odd(a[2 * i], second);
    }
    count = half;
  }
}

INLINE float sum_of(V a) {
  sum_lanes<1>(&a);
  return a[0];
}

template <class T>
constexpr T rounded(T value, T unit) {
  return (value + unit - 1) / unit * unit;
}

// -- shapes

struct Level {  // the activations before a block, or after the last
  int channels;
  long samples, distance;        // of a window, and from window to window in a row
  long padding, length, stride;  // zeros on both sides of a row, its data, row to row
};

struct Block {
  int inputs, outputs;
  long dilation;
  bool pool;
  long forward, backward;                         // packed filters, in floats
  long filters, bias, gain, shift;                // gradients in a slot, in floats
  long filter_count() const { return rounded(outputs, DEEP) * 3L * rounded(inputs, DEEP); }
};

struct Shape {
  std::vector<Level> levels;
  std::vector<Block> blocks;
  int hidden, features;      // of the head: 0 for one linear layer; channels after the last block
  long group;                // windows
  long work;                 // products in the forward pass of a window
  long packed, slot;         // floats
  long head, head_bias, out, out_bias;  // of the head, in a slot: first layer, second layer
  int rows() const { return hidden ? hidden : 1; }
  long width() const { return rounded<long>(features, LANES); }
  long hidden_width() const { return rounded<long>(rows(), LANES); }
};

void set_levels(Shape& shape, int channels, long samples, const int64_t* blocks, int count) {
  long length = samples;
  int before = channels, pools = 0;
  std::vector<int> depth;
  for (int b = 0; b < count; ++b) {
    const int64_t* given = blocks + 3 * b;
    const long dilation = std::min<long>(given[1], length);  // beyond it both side taps read zeros
    const bool pool = given[2] && length > 1;
    shape.levels.push_back({before, length, 0, dilation, 0, 0});
    shape.blocks.push_back({before, (int)given[0], dilation, pool, 0, 0, 0, 0, 0, 0});
    depth.push_back(pools);
    pools += pool;
    length = pool ? length / 2 : length;
    before = (int)given[0];
  }
  shape.levels.push_back({before, length, 0, 0, 0, 0});
  depth.push_back(pools);
  long unit = 0;  // distance after all poolings
  for (size_t l = 0; l < shape.levels.size(); ++l) {
    const Level& level = shape.levels[l];
    const long samples = (level.samples + level.padding) << depth[l];
    unit = std::max(unit, rounded<long>(samples, 1L << pools) >> pools);
  }
  shape.group = std::max(1L, std::min(16L, GROUP_SAMPLES / (unit << pools)));
  const long whole = rounded<long>(shape.group * (unit << pools), (long)LANES << pools);
  for (size_t l = 0; l < shape.levels.size(); ++l) {
    Level& level = shape.levels[l];
    level.distance = unit << (pools - depth[l]);
    level.length = whole >> depth[l];
    level.padding = rounded<long>(level.padding, LANES) + LANES;
    level.stride = level.length + 2 * level.padding;
  }
}

void set_sizes(Shape& shape) {
  long packed = 0, slot = 0;
  shape.work = 0;
  for (Block& b : shape.blocks) {
    shape.work += 3L * b.inputs * b.outputs * shape.levels[&b - shape.blocks.data()].samples;
    b.forward = packed;
    b.backward = b.forward + b.filter_count();
    packed = b.backward + b.filter_count();
    for (long* place : {&b.filters, &b.bias, &b.gain, &b.shift}) {
      *place = slot;
      slot += place == &b.filters ? b.filter_count() : (long)b.outputs * LANES;
    }
    slot = rounded<long>(slot, LANES);
  }
  shape.head = slot;
  shape.head_bias = shape.head + shape.rows() * shape.width();
  shape.out = shape.head_bias + shape.hidden_width();
  shape.out_bias = shape.out + shape.hidden_width();
  shape.slot = shape.out_bias + LANES;
  shape.packed = packed;
}

// -- memory

struct Floats {  // zeroed, aligned to vectors
  float* data = nullptr;
  size_t size = 0;
  void need(size_t count) {
    if (count <= size) return;
    std::free(data);
    size = 0;
    data = (float*)std::aligned_alloc(64, rounded<size_t>(count * sizeof(float), 64));
    if (!data) throw std::bad_alloc();
    std::memset(data, 0, count * sizeof(float));
    size = count;
  }
  Floats() = default;
  Floats(const Floats&) = delete;
  Floats& operator=(const Floats&) = delete;
  ~Floats() { std::free(data); }
};

struct Rows {  // of one level: position 0 of channel 0, and the distance between channels
  float* start;
  long stride;
  float* at(int channel) const { return start + channel * stride; }
};

struct Workspace {  // of one thread
  std::vector<Floats> activations, normed, spread;  // spread: 1 / standard deviation
  std::vector<std::vector<int32_t>> valid;          // by level: -1 where a window is, else 0
  Floats tile, head;
  long windows = 0;  // that `valid` was made for
  Rows rows(const Shape& shape, size_t level) {
    const Level& l = shape.levels[level];
    return {activations[level].data + l.padding, l.stride};
  }
  Rows normed_rows(const Shape& shape, size_t block) {
    const Level& l = shape.levels[block];
    return {normed[block].data + l.padding, l.stride};
  }
};

// All that a pass needs: a thread that helps must not run out of memory.
void prepare(Workspace& w, const Shape& shape, bool gradients) {
  const size_t count = shape.blocks.size();
  if (w.activations.size() != count + 1) {
    w.activations = std::vector<Floats>(count + 1);
    w.normed = std::vector<Floats>(count);
    w.spread = std::vector<Floats>(count);
    w.valid.resize(count + 1);
  }
  int widest = 0;
  for (size_t l = 0; l <= count; ++l) {
    const Level& level = shape.levels[l];
    w.valid[l].reserve(level.length);
    widest = std::max(widest, rounded(level.channels, DEEP));
    w.activations[l].need(rounded(level.channels, DEEP) * level.stride);
    if (l < count && gradients) {
      w.normed[l].need(rounded(shape.blocks[l].outputs, DEEP) * level.stride);
      w.spread[l].need(level.length);
    }
  }
  w.tile.need((size_t)widest * LONG * LANES);
  w.head.need(2 * shape.width() + 3 * shape.hidden_width());
}

void set_valid(Workspace& w, const Shape& shape, long windows) {
  if (w.windows == windows) return;
  w.windows = windows;
  for (size_t l = 1; l < shape.levels.size(); ++l) {
    const Level& level = shape.levels[l];
    w.valid[l].assign(level.length, 0);
    for (long n = 0; n < windows; ++n)
      std::fill_n(w.valid[l].begin() + n * level.distance, level.samples, -1);
  }
}

// How much of a row `windows` of a group fill, in whole vectors after every pooling.
long filled(const Shape& shape, size_t level, long windows) {
  const long ratio = shape.levels[0].length / shape.levels.back().length;
  const long whole = rounded<long>(windows * shape.levels[0].distance, LANES * ratio);
  return whole / (shape.levels[0].distance / shape.levels[level].distance);
}

// -- parameters: pointers in the order of `Parameter`, four for each block, then the head's

enum Parameter { WEIGHT, BIAS, GAIN, SHIFT, PER_BLOCK };

float mean_over_outputs(const float* values, int outputs, long step) {
  double sum = 0;
  for (int o = 0; o < outputs; ++o) sum += values[o * step];
  return (float)(sum / outputs);
}

// Filters without their mean over outputs: [output / DEEP][input][tap][DEEP] forward,
// [input / DEEP][output][tap reversed][DEEP] backward.
void pack(const Block& b, const float* weight, float* packed) {
  float* forward = packed + b.forward;
  float* backward = packed + b.backward;
  for (int i = 0; i < b.inputs; ++i)
    for (int k = 0; k < 3; ++k) {
      const float* column = weight + i * 3 + k;
      const float mean = mean_over_outputs(column, b.outputs, b.inputs * 3L);
      for (int o = 0; o < b.outputs; ++o) {
        const float value = column[o * b.inputs * 3L] - mean;
        forward[((long)(o / DEEP * b.inputs + i) * 3 + k) * DEEP + o % DEEP] = value;
        backward[((long)(i / DEEP * b.outputs + o) * 3 + 2 - k) * DEEP + i % DEEP] = value;
      }
    }
}

// -- convolution

// sums[o][v] += filters of DEEP outputs over rows of `inputs` channels, at v vectors from x on.
template <int WIDTH>
INLINE void convolve(V (&sums)[DEEP][WIDTH], const float* x, long stride, int inputs, long dilation,
                     const float* filters) {
  for (int i = 0; i < inputs; ++i, x += stride) {
    UNROLL_TAPS
    for (int k = 0; k < 3; ++k, filters += DEEP) {
      V taps[WIDTH];
      const float* shifted = x + (k - 1) * dilation;
#pragma GCC unroll 4
      for (int v = 0; v < WIDTH; ++v) taps[v] = in_register(load(shifted + v * LANES));
#pragma GCC unroll 4
      for (int o = 0; o < DEEP; ++o) {
        const V filter = splat(filters[o]);
#pragma GCC unroll 4
        for (int v = 0; v < WIDTH; ++v) sums[o][v] = fma(filter, taps[v], sums[o][v]);
      }
    }
  }
}

// Calls tile<WIDTH>(position) over a row of whole vectors, MOST at a time.
template <int MOST = WIDE, class Tile>
INLINE void in_tiles(long length, Tile tile) {
  long t = 0;
  for (; t + MOST * LANES <= length; t += MOST * LANES)
    tile(std::integral_constant<int, MOST>(), t);
  if (MOST > 2 && t + 2 * LANES <= length) {
    tile(std::integral_constant<int, 2>(), t);
    t += 2 * LANES;
  }
  if (t < length) tile(std::integral_constant<int, 1>(), t);
}

// -- a block forward

struct Norm {
  const float *bias, *gain, *shift;
  float mean;  // of the bias
};

// a > b ? a : b, and so b where one of them is NaN.
#if defined(__AVX512F__)
INLINE V larger(V a, V b) { return (V)_mm512_max_ps((__m512)a, (__m512)b); }
#elif defined(__AVX2__) && defined(__FMA__)
INLINE V larger(V a, V b) { return (V)_mm256_max_ps((__m256)a, (__m256)b); }
#else
INLINE V larger(V a, V b) { return choose(a > b, a, b); }
#endif

// ReLU keeps NaN, and pooling prefers it, as PyTorch's do.
INLINE V rectified(V z) { return larger(V{}, z); }
INLINE V pooled(V first, V second) {
  return (V)((M)larger(first, second) | (M)(first != first));  // all ones are NaN
}
INLINE M second_is_larger(V first, V second) { return (second > first) | (second != second); }

template <bool KEEP, int WIDTH>
INLINE void forward_tile(const Block& b, const float* filters, const Norm& norm, Rows x, Rows h,
                         float* spread, Rows y, const int32_t* valid, long t) {
  V squares[WIDTH] = {};
  const long place = KEEP ? t : 0;
  constexpr int PART = WIDTH < WIDE ? WIDTH : WIDE;
  for (int o = 0; o < b.outputs; o += DEEP) {
    const float* own = filters + (long)o * b.inputs * 3;
#pragma GCC unroll 2
    for (int part = 0; part < WIDTH; part += PART) {
      V sums[DEEP][PART];
#pragma GCC unroll 4
      for (int j = 0; j < DEEP; ++j)
#pragma GCC unroll 4
        for (int v = 0; v < PART; ++v)
          sums[j][v] = splat(o + j < b.outputs ? norm.bias[o + j] - norm.mean : 0.0f);
      convolve(sums, x.start + t + part * LANES, x.stride, b.inputs, b.dilation, own);
#pragma GCC unroll 4
      for (int j = 0; j < DEEP; ++j)
#pragma GCC unroll 4
        for (int v = 0; v < PART; ++v) {
          store(h.at(o + j) + place + (part + v) * LANES, sums[j][v]);
          squares[part + v] = fma(sums[j][v], sums[j][v], squares[part + v]);
        }
    }
  }
  const float each = 1.0f / (float)b.outputs;
#pragma GCC unroll 4
  for (int v = 0; v < WIDTH; ++v) {
    squares[v] = 1.0f / root(squares[v] * each + EPSILON);
    if (KEEP) store(spread + t + v * LANES, squares[v]);
  }
  const long out = b.pool ? t / 2 : t;
  for (int o = 0; o < b.outputs; ++o) {
    V z[WIDTH];
    float* row = h.at(o) + place;
#pragma GCC unroll 4
    for (int v = 0; v < WIDTH; ++v) {
      const V n = load(row + v * LANES) * squares[v];
      if (KEEP) store(row + v * LANES, n);
      z[v] = fma(n, splat(norm.gain[o]), splat(norm.shift[o]));
    }
    if (WIDTH > 1 && b.pool) {
#pragma GCC unroll 4
      for (int v = 0; v < WIDTH / 2; ++v) {
        z[v] = pooled(even(z[2 * v], z[2 * v + 1]), odd(z[2 * v], z[2 * v + 1]));
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < WIDTH; ++v)
      if (v < WIDTH / 2 || WIDTH == 1 || !b.pool)
        store(y.at(o) + out + v * LANES, keep(load_mask(valid + out + v * LANES), rectified(z[v])));
  }
}

// -- a block backward

struct Sums {  // of one block's gradients, in a slot
  float *bias, *gain, *shift;
};

// Gradient of the norm's output z (WIDTH vectors) from that of the block's output.
template <int WIDTH>
INLINE void through_pool(V (&dz)[WIDTH], const V (&z)[WIDTH], bool pool, const float* dy,
                         const int32_t* valid) {
  if (WIDTH > 1 && pool) {
#pragma GCC unroll 4
    for (int v = 0; v < WIDTH / 2; ++v) {
      const V first = even(z[2 * v], z[2 * v + 1]), second = odd(z[2 * v], z[2 * v + 1]);
      const M larger = second_is_larger(first, second);
      const M open = ~(choose(larger, second, first) <= V{}) & load_mask(valid + v * LANES);
      const V g = keep(open, load(dy + v * LANES));
      const V of_first = keep(~larger, g), of_second = keep(larger, g);
      dz[2 * v] = low(of_first, of_second);
      dz[2 * v + 1] = high(of_first, of_second);
    }
  } else {
#pragma GCC unroll 4
    for (int v = 0; v < WIDTH; ++v)
      dz[v] = keep(~(z[v] <= V{}) & load_mask(valid + v * LANES), load(dy + v * LANES));
  }
}

// Replaces the normalised activations n by the gradient of the convolution's output.
template <int WIDTH>
INLINE void backward_tile(const Block& b, const Norm& norm, Rows n, const float* spread, Rows dy,
                          const int32_t* valid, float* tile, const Sums& sums, long t) {
  const long out = b.pool ? t / 2 : t;
  V inner[WIDTH] = {};
  for (int o = 0; o < b.outputs; ++o) {
    const V gain = splat(norm.gain[o]), shift = splat(norm.shift[o]);
    V now[WIDTH], z[WIDTH], dz[WIDTH];
#pragma GCC unroll 4
    for (int v = 0; v < WIDTH; ++v) {
      now[v] = load(n.at(o) + t + v * LANES);
      z[v] = fma(now[v], gain, shift);
    }
    through_pool(dz, z, b.pool, dy.at(o) + out, valid + out);
    V of_gain = load(sums.gain + o * LANES), of_shift = load(sums.shift + o * LANES);
#pragma GCC unroll 4
    for (int v = 0; v < WIDTH; ++v) {
      of_gain = fma(dz[v], now[v], of_gain);
      of_shift += dz[v];
      const V dn = dz[v] * gain;
      inner[v] = fma(dn, now[v], inner[v]);
      store(tile + (o * WIDTH + v) * LANES, dn);
    }
    store(sums.gain + o * LANES, of_gain);
    store(sums.shift + o * LANES, of_shift);
  }
  V scale[WIDTH];
#pragma GCC unroll 4
  for (int v = 0; v < WIDTH; ++v) {
    inner[v] = -(inner[v] / (float)b.outputs);
    scale[v] = load(spread + t + v * LANES);
  }
  for (int o = 0; o < b.outputs; ++o) {
    V of_bias = load(sums.bias + o * LANES);
#pragma GCC unroll 4
    for (int v = 0; v < WIDTH; ++v) {
      float* place = n.at(o) + t + v * LANES;
      const V dh = fma(load(place), inner[v], load(tile + (o * WIDTH + v) * LANES)) * scale[v];
      of_bias += dh;
      store(place, dh);
    }
    store(sums.bias + o * LANES, of_bias);
  }
}

// Gradient of the filters of DEEP outputs and up to PAIR inputs, summed over the row.
template <int INPUTS>
INLINE void filter_tile(Rows dh, Rows x, int o, int i, long dilation, long length, float* sums) {
  V found[INPUTS * 3 * DEEP] = {};
  const float *outputs = dh.at(o), *inputs = x.at(i);
  for (long t = 0; t < length; t += LANES) {
    V g[DEEP];
#pragma GCC unroll 4
    for (int j = 0; j < DEEP; ++j) g[j] = in_register(load(outputs + j * dh.stride + t));
#pragma GCC unroll 4
    for (int n = 0; n < INPUTS; ++n)
#pragma GCC unroll 3
      for (int k = 0; k < 3; ++k) {
        V tap = load(inputs + n * x.stride + t + (k - 1) * dilation);
        if (REGISTERS == 32) tap = in_register(tap);
#pragma GCC unroll 4
        for (int j = 0; j < DEEP; ++j)
          found[(n * 3 + k) * DEEP + j] = fma(g[j], tap, found[(n * 3 + k) * DEEP + j]);
      }
  }
  sum_lanes<INPUTS * 3 * DEEP>(found);
#pragma GCC unroll 24
  for (int j = 0; j < INPUTS * 3 * DEEP; ++j) sums[j] += found[j / LANES][j % LANES];
}

void filter_gradient(const Block& b, Rows dh, Rows x, long length, float* sums) {
  for (int o = 0; o < b.outputs; o += DEEP) {
    float* place = sums + (long)o * b.inputs * 3;
    int i = 0;
    for (; i + PAIR <= b.inputs; i += PAIR)
      filter_tile<PAIR>(dh, x, o, i, b.dilation, length, place + i * 3 * DEEP);
    for (; i < b.inputs; ++i)
      filter_tile<1>(dh, x, o, i, b.dilation, length, place + i * 3 * DEEP);
  }
}

template <int WIDTH>
INLINE void input_tile(const Block& b, const float* filters, Rows dh, Rows dx, long t) {
  for (int i = 0; i < b.inputs; i += DEEP) {
    V sums[DEEP][WIDTH] = {};
    const float* own = filters + (long)i * b.outputs * 3;
    convolve(sums, dh.start + t, dh.stride, b.outputs, b.dilation, own);
#pragma GCC unroll 4
    for (int j = 0; j < DEEP; ++j)
#pragma GCC unroll 4
      for (int v = 0; v < WIDTH; ++v) store(dx.at(i + j) + t + v * LANES, sums[j][v]);
  }
}

void input_gradient(const Block& b, const float* filters, Rows dh, Rows dx, long length) {
  in_tiles(length, [&](auto width, long t) { input_tile<width>(b, filters, dh, dx, t); });
}

// -- augmentation

typedef uint32_t U __attribute__((vector_size(4 * LANES)));

// The functions below take several vectors at once: one alone would wait for each of its steps.
#define EACH _Pragma("GCC unroll 4") for (int v = 0; v < COUNT; ++v)

template <class T, int COUNT>
INLINE void mix(T (&x)[COUNT]) {  // "lowbias32" of C. Wellons' hash prospector
  EACH x[v] ^= x[v] >> 16;
  EACH x[v] *= 0x7feb352du;
  EACH x[v] ^= x[v] >> 15;
  EACH x[v] *= 0x846ca68bu;
  EACH x[v] ^= x[v] >> 16;
}

INLINE uint32_t mixed(uint32_t x) {
  uint32_t one[] = {x};
  mix(one);
  return one[0];
}

template <int COUNT, int TERMS>
INLINE void horner(V (&p)[COUNT], const V (&x)[COUNT], const float (&terms)[TERMS]) {
  EACH p[v] = splat(terms[0]);
#pragma GCC unroll 6
  for (int n = 1; n < TERMS; ++n) EACH p[v] = fma(p[v], x[v], splat(terms[n]));
}

// Natural logarithm of positive, normal numbers to a relative error of 1e-5: the exponent, and a
// polynomial fitted to the rest, which lies between the roots of 1/2 and of 2.
template <int COUNT>
INLINE void logarithm(V (&a)[COUNT]) {
  const float terms[] = {-0.14292071f, 0.22055936f,  -0.2540327f,
                         0.33258024f,  -0.49990218f, 1.0000046f};
  const int root_of_half = 0x3f3504f3;  // its bits
  V exponent[COUNT], above[COUNT], p[COUNT];
  EACH {
    const M bits = (M)a[v] - root_of_half;
    exponent[v] = __builtin_convertvector(bits >> 23, V);
    above[v] = (V)((bits & 0x7fffff) + root_of_half) - 1.0f;
  }
  horner(p, above, terms);
  EACH a[v] = fma(exponent[v], splat(0.693147181f), p[v] * above[v]);
}

// The sine and the cosine of x, at most pi / 4, as in Cephes.
template <int COUNT>
INLINE void sine_and_cosine(const V (&x)[COUNT], V (&sine)[COUNT], V (&cosine)[COUNT]) {
  const float odd[] = {-1.9515295891e-4f, 8.3321608736e-3f, -1.6666654611e-1f};
  const float even[] = {2.443315711809948e-5f, -1.388731625493765e-3f, 4.166664568298827e-2f,
                        -0.5f, 1.0f};
  V square[COUNT];
  EACH square[v] = x[v] * x[v];
  horner(sine, square, odd);
  horner(cosine, square, even);
  EACH sine[v] = fma(sine[v] * square[v], x[v], x[v]);
}

// Pairs of independent, standard normal numbers, from 32 random bits for their radius and 32 for
// their angle: G. E. P. Box and M. E. Muller, "A note on the generation of random normal deviates",
// Annals of Mathematical Statistics 29, 1958.
template <int COUNT>
INLINE void normal(const U (&far)[COUNT], const U (&turn)[COUNT], V (&x)[COUNT], V (&y)[COUNT]) {
  V radius[COUNT], angle[COUNT], sine[COUNT], cosine[COUNT];
  EACH radius[v] = fma(__builtin_convertvector((M)(far[v] >> 8), V), splat(0x1p-24f),
                       splat(0x1p-25f));
  logarithm(radius);
  EACH radius[v] = root(radius[v] * -2.0f);
  // 30 bits say where in a quarter of the circle, from -pi / 4 on, and two bits in which quarter
  EACH angle[v] = __builtin_convertvector((M)(turn[v] << 2), V) * (0.785398163f * 0x1p-31f);
  sine_and_cosine(angle, sine, cosine);
  EACH {
    cosine[v] = (V)((U)cosine[v] ^ (turn[v] & 0x80000000u)) * radius[v];
    sine[v] *= radius[v];
    const M swapped = (M)(turn[v] << 1) >> 31;
    x[v] = choose(swapped, sine[v], cosine[v]);
    y[v] = choose(swapped, cosine[v], sine[v]);
  }
}

struct Change {  // of a row: x * factor + spread * noise
  float factor, spread;
  uint32_t first, second;  // of the seed
  uint32_t row;
  bool changes() const { return factor != 1 || spread != 0; }
};

INLINE void change(const Change& c, float* at, V noise) {
  store(at, fma(noise, splat(c.spread), load(at) * c.factor));
}

// COUNT pairs of vectors, as far as `length`; two neighbouring samples are a pair of numbers.
// counter: of the pairs of samples.
template <int COUNT>
INLINE void change_tile(const Change& c, float* at, long length, U counter,
                        const uint32_t (&keys)[3]) {
  U far[COUNT], turn[COUNT];
  V x[COUNT], y[COUNT];
  EACH far[v] = counter + (uint32_t)(v * LANES) + keys[0];
  mix(far);
  EACH turn[v] = far[v] ^ keys[2];
  EACH far[v] ^= keys[1];
  mix(far);
  mix(turn);
  normal(far, turn, x, y);
  EACH {
    const long t = 2 * v * LANES;
    if (t < length) change(c, at + t, low(x[v], y[v]));
    if (t + LANES < length) change(c, at + t + LANES, high(x[v], y[v]));
  }
}

// Whole vectors from `row` on; sample `start` of the window, an even number, stands there.
void change_row(const Change& c, float* row, long start, long length) {
  if (c.spread == 0) {
    for (long t = 0; t < length; t += LANES) store(row + t, load(row + t) * c.factor);
    return;
  }
  uint32_t keys[] = {mixed(c.first + c.row), 0, 0};
  keys[1] = mixed(c.second ^ mixed(keys[0] + 1));
  keys[2] = mixed(keys[1] + 1);
  U lanes;
  for (int lane = 0; lane < LANES; ++lane) lanes[lane] = (uint32_t)(start / 2) + lane;
  in_tiles(rounded<long>(length, 2 * LANES) / 2, [&](auto width, long t) {
    change_tile<width>(c, row + 2 * t, length - 2 * t, lanes + (uint32_t)t, keys);
  });
}

struct Augmentation {  // of windows; factors: null for none
  const float *factors, *spreads;  // [windows], [windows][channels]
  uint64_t seed;

  Change of(long window, int channel, int channels) const {
    const long row = window * channels + channel;
    return {factors[window], spreads[row], (uint32_t)seed, (uint32_t)(seed >> 32), (uint32_t)row};
  }
};

// -- a call

struct Call {  // what is asked for; gradients: null, or null for a parameter that is not trained
  const float* const* x;                     // where each window lies
  int64_t channel, sample;                   // strides of a window
  Augmentation augmentation;
  const float *y, *mean, *factor, *dropout;  // y: null without gradients; the others: or null
  int64_t first, batch;                      // windows of the batch
  int threads;
  const float* const* parameters;
  float* const* gradients;
  double pos_weight;
  float* logits;   // or null
  double* losses;  // unweighted
  int lowest;      // first block whose gradient is needed
};

class Helpers;

struct EndHelpers {
  void operator()(Helpers* helpers) const;
};

struct Stack {
  Shape shape;
  Floats packed, slots, scaling;
  std::vector<Workspace> workspaces;  // of the caller and of every helper
  std::vector<double> losses;
  std::atomic<long> taken{0};  // slots of the batch that passes
  std::unique_ptr<Helpers, EndHelpers> helpers;  // null: not needed so far
};

struct Group {  // the windows that pass together
  Stack& stack;
  Workspace& work;
  const Call& call;
  long first, windows;
  float* slot;  // or null
};

Norm norm_of(const Group& g, size_t block) {
  const float* const* p = g.call.parameters + block * PER_BLOCK;
  return {p[BIAS], p[GAIN], p[SHIFT],
          mean_over_outputs(p[BIAS], g.stack.shape.blocks[block].outputs, 1)};
}

// One channel of window n, augmented and normalised, with zeros behind it up to `end`.
void copy_channel(const Call& call, long n, int c, const Level& level, float* to, long end) {
  const float* from = call.x[n] + c * call.channel;
  if (call.sample == 1)
    std::memcpy(to, from, level.samples * sizeof(float));
  else
    for (long t = 0; t < level.samples; ++t) to[t] = from[t * call.sample];
  if (call.augmentation.factors) {
    const Change change = call.augmentation.of(n, c, level.channels);
    if (change.changes()) change_row(change, to, 0, level.samples);
  }
  if (call.mean)
    for (long t = 0; t < level.samples; ++t) to[t] = (to[t] - call.mean[c]) * call.factor[c];
  const long behind = std::max<long>(end - level.samples, LANES);  // change_row fills its vectors
  std::memset(to + level.samples, 0, behind * sizeof(float));
}

void copy_input(const Group& g) {
  const Level& level = g.stack.shape.levels[0];
  const Rows rows = g.work.rows(g.stack.shape, 0);
  const long length = filled(g.stack.shape, 0, g.windows);
  for (long n = 0; n < g.windows; ++n) {
    const long start = n * level.distance;
    const long end = n + 1 < g.windows ? level.distance : length - start;
    for (int c = 0; c < level.channels; ++c)
      copy_channel(g.call, g.first + n, c, level, rows.at(c) + start, end);
  }
}

template <bool KEEP>
void forward_block(const Group& g, size_t block) {
  const Shape& shape = g.stack.shape;
  const Block& b = shape.blocks[block];
  const Norm norm = norm_of(g, block);
  const float* filters = g.stack.packed.data + b.forward;
  const Rows x = g.work.rows(shape, block), y = g.work.rows(shape, block + 1);
  const Rows h = KEEP ? g.work.normed_rows(shape, block) : Rows{g.work.tile.data, LONG * LANES};
  in_tiles<LONG>(filled(shape, block, g.windows), [&](auto width, long t) {
    forward_tile<KEEP, width>(b, filters, norm, x, h, g.work.spread[block].data, y,
                              g.work.valid[block + 1].data(), t);
  });
}

void backward_block(const Group& g, size_t block) {
  const Shape& shape = g.stack.shape;
  const Block& b = shape.blocks[block];
  const Norm norm = norm_of(g, block);
  const Rows x = g.work.rows(shape, block), dy = g.work.rows(shape, block + 1);
  const Rows n = g.work.normed_rows(shape, block);
  const Sums sums = {g.slot + b.bias, g.slot + b.gain, g.slot + b.shift};
  const long length = filled(shape, block, g.windows);
  in_tiles(length, [&](auto width, long t) {
    backward_tile<width>(b, norm, n, g.work.spread[block].data, dy,
                         g.work.valid[block + 1].data(), g.work.tile.data, sums, t);
  });
  if (g.call.gradients[block * PER_BLOCK + WEIGHT])
    filter_gradient(b, n, x, length, g.slot + b.filters);
  if ((int)block > g.call.lowest)
    input_gradient(b, g.stack.packed.data + b.backward, n, x, length);
}

// -- the head

const int32_t TAIL[2 * LANES] = {
    // a mask of n lanes starts at TAIL + LANES - n
#if defined(__AVX512F__)
    -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1
#elif defined(__AVX2__) && defined(__FMA__)
    -1, -1, -1, -1, -1, -1, -1, -1
#else
    -1, -1, -1, -1
#endif
};

float average(const float* row, long samples) {
  V sum = {};
  long t = 0;
  for (; t + LANES <= samples; t += LANES) sum += load(row + t);
  if (t < samples) sum += keep(load_mask(TAIL + LANES - (samples - t)), load(row + t));
  return sum_of(sum) / (float)samples;
}

float dot(const float* a, const float* b, int count) {  // a: padded with zeros to whole vectors
  V sum = {};
  int i = 0;
  for (; i + LANES <= count; i += LANES) sum = fma(load(a + i), load(b + i), sum);
  float result = sum_of(sum);
  for (; i < count; ++i) result += a[i] * b[i];
  return result;
}

void add_scaled(float* to, const float* from, float factor, int count) {
  for (int i = 0; i < count; ++i) to[i] += from[i] * factor;
}

// Gradient of the weighted loss by the logit; the unweighted loss goes to `loss`.
double of_logit(double z, double y, double pos_weight, double& loss) {
  const double e = std::exp(-std::fabs(z)), tail = std::log1p(e);
  const double p = z >= 0 ? 1 / (1 + e) : e / (1 + e), q = z >= 0 ? e / (1 + e) : 1 / (1 + e);
  const double of_positive = (z < 0 ? -z : 0) + tail, of_negative = (z > 0 ? z : 0) + tail;
  loss = z != z ? z : y * of_positive + (1 - y) * of_negative;
  return z != z ? z : (1 - y) * p - pos_weight * y * q;
}

// Logit of one window from its features f; fills `a` with the hidden layer where there is one.
float head_forward(const Shape& shape, const float* const* p, const float* f, float* a) {
  if (!shape.hidden) return dot(f, p[0], shape.features) + p[1][0];
  for (int j = 0; j < shape.hidden; ++j) {
    const float z = dot(f, p[0] + (long)j * shape.features, shape.features) + p[1][j];
    a[j] = z < 0 ? 0 : z;
  }
  return dot(a, p[2], shape.hidden) + p[3][0];
}

// Adds the head's gradients to the slot and puts those of the features into `df`.
void head_backward(const Shape& shape, const float* const* p, float g, const float* f,
                   const float* a, float* df, float* slot) {
  std::memset(df, 0, shape.width() * sizeof(float));
  if (!shape.hidden) {
    add_scaled(slot + shape.head, f, g, shape.features);
    slot[shape.head_bias] += g;
    add_scaled(df, p[0], g, shape.features);
    return;
  }
  add_scaled(slot + shape.out, a, g, shape.hidden);
  slot[shape.out_bias] += g;
  for (int j = 0; j < shape.hidden; ++j) {
    if (a[j] <= 0) continue;
    const float of_hidden = g * p[2][j];
    add_scaled(slot + shape.head + j * shape.width(), f, of_hidden, shape.features);
    slot[shape.head_bias + j] += of_hidden;
    add_scaled(df, p[0] + (long)j * shape.features, of_hidden, shape.features);
  }
}

// Logit and loss of window n of the group; with gradients, that of the last block's output.
void head(const Group& g, long n) {
  const Shape& shape = g.stack.shape;
  const Level& last = shape.levels.back();
  const Rows y = g.work.rows(shape, shape.blocks.size());
  const float* const* p = g.call.parameters + shape.blocks.size() * PER_BLOCK;
  const float* mask = g.call.dropout ? g.call.dropout + (g.first + n) * shape.features : nullptr;
  float* f = g.work.head.data;
  float *df = f + shape.width(), *a = df + shape.width();
  for (int c = 0; c < shape.features; ++c) {
    f[c] = average(y.at(c) + n * last.distance, last.samples);
    if (mask) f[c] *= mask[c];
  }
  const float logit = head_forward(shape, p, f, a);
  if (g.call.logits) g.call.logits[g.first + n] = logit;
  if (!g.call.y) return;
  const long at = g.first + n;
  const double of = of_logit(logit, g.call.y[at], g.call.pos_weight, g.call.losses[at]);
  head_backward(shape, p, (float)(of / g.call.batch), f, a, df, g.slot);
  for (int c = 0; c < shape.features; ++c) {
    float* row = y.at(c) + n * last.distance;
    const float each = df[c] * (mask ? mask[c] : 1.0f) / (float)last.samples;
    std::fill_n(row, last.samples, each);
  }
}

void pass(const Group& g) {
  const Shape& shape = g.stack.shape;
  const int count = (int)shape.blocks.size();
  set_valid(g.work, shape, g.windows);
  copy_input(g);
  for (int b = 0; b < count; ++b) {
    const bool keeps = g.slot && b >= g.call.lowest;
    keeps ? forward_block<true>(g, b) : forward_block<false>(g, b);
  }
  for (long n = 0; n < g.windows; ++n) head(g, n);
  for (int b = count - 1; g.slot && b >= g.call.lowest; --b) backward_block(g, b);
}

// -- a batch

// Takes one slot after the other, of those that no thread has taken: a thread that is held up takes
// fewer. Which thread fills a slot changes no sum.
void pass_slots(Stack& stack, Workspace& work, const Call& call) {
  const long groups = (call.batch + stack.shape.group - 1) / stack.shape.group;
  for (long s; (s = stack.taken++) < std::min<long>(SLOTS, groups);) {
    float* slot = call.gradients ? stack.slots.data + s * stack.shape.slot : nullptr;
    if (slot) std::memset(slot, 0, stack.shape.slot * sizeof(float));
    for (long group = s; group < groups; group += SLOTS) {
      const long start = group * stack.shape.group;
      const long windows = std::min<long>(stack.shape.group, call.batch - start);
      pass({stack, work, call, call.first + start, windows, slot});
    }
  }
}

// Threads that work on batches beside the caller's. They stay from one batch to the next: a new
// thread starts late, and often on the caller's core. Without work they look for it for a short
// time, then sleep.
class Helpers {
 public:
  const int count;

  Helpers(Stack& stack, int wanted) : count(wanted), stack(stack) {
    try {
      for (int t = 1; t <= count; ++t) threads.emplace_back([this, t] { run(t); });
    } catch (...) {
      end();
      throw;
    }
  }

  ~Helpers() { end(); }

  // Not so in the child of a fork: it has the caller's thread only.
  bool alive() const { return getpid() == process; }

  void start(const Call& next) {
    call = &next;
    busy = count;
    begin();
  }

  void wait() {
    while (busy) std::this_thread::yield();
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::microseconds LOOKS{500};

  Stack& stack;
  const pid_t process = getpid();
  const Call* call = nullptr;  // null: the end
  std::atomic<int> busy{0};
  std::atomic<long> begun{0};  // batches
  std::mutex mutex;
  std::condition_variable woken;
  std::vector<std::thread> threads;

  void begin() {
    {
      std::lock_guard<std::mutex> lock(mutex);
      ++begun;
    }
    woken.notify_all();
  }

  void await(long batch) {
    const auto until = Clock::now() + LOOKS;
    while (begun < batch && Clock::now() < until) std::this_thread::yield();
    std::unique_lock<std::mutex> lock(mutex);
    woken.wait(lock, [&] { return begun >= batch; });
  }

  void run(int number) {
    for (long batch = 1;; ++batch) {
      await(batch);
      if (!call) return;
      pass_slots(stack, stack.workspaces[number], *call);
      --busy;
    }
  }

  void end() {
    call = nullptr;
    begin();
    for (std::thread& thread : threads) thread.join();
  }
};

void EndHelpers::operator()(Helpers* helpers) const {
  if (helpers->alive()) delete helpers;
}

Helpers& helpers_of(Stack& stack, int count) {
  if (!stack.helpers || !stack.helpers->alive() || stack.helpers->count != count)
    stack.helpers.reset(new Helpers(stack, count));
  return *stack.helpers;
}

void pass_batch(Stack& stack, const Call& call) {
  const long groups = (call.batch + stack.shape.group - 1) / stack.shape.group;
  const bool alone = groups == 1 || call.batch * stack.shape.work < SHARED_WORK;
  const int helpers = alone ? 0 : std::min(call.threads, SLOTS) - 1;
  if ((int)stack.workspaces.size() <= helpers)
    stack.workspaces = std::vector<Workspace>(helpers + 1);
  for (int t = 0; t <= helpers; ++t) prepare(stack.workspaces[t], stack.shape, call.gradients);
  stack.taken = 0;
  if (helpers) helpers_of(stack, helpers).start(call);
  pass_slots(stack, stack.workspaces[0], call);
  if (helpers) stack.helpers->wait();
}

void add_slots(Stack& stack, int64_t batch) {
  const long groups = (batch + stack.shape.group - 1) / stack.shape.group;
  float* sum = stack.slots.data;
  for (long s = 1; s < std::min<long>(SLOTS, groups); ++s) {
    const float* other = stack.slots.data + s * stack.shape.slot;
    for (long i = 0; i < stack.shape.slot; ++i) sum[i] += other[i];
  }
}

// Gradients of the given filters from those of the filters without their mean over outputs.
void unpack(const Block& b, const float* sums, float* gradient) {
  for (int i = 0; i < b.inputs; ++i)
    for (int k = 0; k < 3; ++k) {
      float* column = gradient + i * 3 + k;
      const long step = b.inputs * 3L;
      for (int o = 0; o < b.outputs; ++o)
        column[o * step] = sums[((long)(o / DEEP * b.inputs + i) * 3 + k) * DEEP + o % DEEP];
      const float mean = mean_over_outputs(column, b.outputs, step);
      for (int o = 0; o < b.outputs; ++o) column[o * step] -= mean;
    }
}

void unpack_block(const Block& b, const float* slot, float* const* gradients) {
  if (gradients[WEIGHT]) unpack(b, slot + b.filters, gradients[WEIGHT]);
  const long places[] = {b.bias, b.gain, b.shift};
  for (int n = 0; n < 3; ++n) {
    float* gradient = gradients[BIAS + n];
    if (!gradient) continue;
    for (int o = 0; o < b.outputs; ++o) gradient[o] = sum_of(load(slot + places[n] + o * LANES));
    if (BIAS + n == BIAS) {
      const float mean = mean_over_outputs(gradient, b.outputs, 1);
      for (int o = 0; o < b.outputs; ++o) gradient[o] -= mean;
    }
  }
}

void unpack_head(const Shape& shape, const float* slot, float* const* gradients) {
  for (int j = 0; gradients[0] && j < shape.rows(); ++j)
    std::memcpy(gradients[0] + (long)j * shape.features, slot + shape.head + j * shape.width(),
                shape.features * sizeof(float));
  if (gradients[1]) std::memcpy(gradients[1], slot + shape.head_bias, shape.rows() * sizeof(float));
  if (!shape.hidden) return;
  if (gradients[2]) std::memcpy(gradients[2], slot + shape.out, shape.hidden * sizeof(float));
  if (gradients[3]) gradients[3][0] = slot[shape.out_bias];
}

int lowest_trained(const Shape& shape, float* const* gradients) {
  const int count = (int)shape.blocks.size();
  for (int p = 0; p < count * PER_BLOCK; ++p)
    if (gradients[p]) return p / PER_BLOCK;
  return count;
}

void set_scaling(Stack& stack, Call& call, const float* mean, const float* sd) {
  if (!mean) return;
  const int channels = stack.shape.levels[0].channels;
  stack.scaling.need(2 * channels);
  for (int c = 0; c < channels; ++c) {
    stack.scaling.data[c] = mean[c];
    stack.scaling.data[channels + c] = 1.0f / sd[c];
  }
  call.mean = stack.scaling.data;
  call.factor = stack.scaling.data + channels;
}

void pack_all(Stack& stack, const Call& call) {
  for (size_t b = 0; b < stack.shape.blocks.size(); ++b)
    pack(stack.shape.blocks[b], call.parameters[b * PER_BLOCK + WEIGHT], stack.packed.data);
}

// Loss and gradients of one batch.
double gradient(Stack& stack, Call& call) {
  const Shape& shape = stack.shape;
  pack_all(stack, call);
  pass_batch(stack, call);
  add_slots(stack, call.batch);
  for (size_t b = 0; b < shape.blocks.size(); ++b)
    unpack_block(shape.blocks[b], stack.slots.data, call.gradients + b * PER_BLOCK);
  unpack_head(shape, stack.slots.data, call.gradients + shape.blocks.size() * PER_BLOCK);
  double sum = 0;
  for (int64_t n = 0; n < call.batch; ++n) sum += call.losses[call.first + n];
  return sum;
}

// -- Adam

struct Adam {  // the trained parameters and their gradients as one vector; step: updates so far
  float *weights, *gradient, *mean, *square, *step;
  int64_t count;
  double rate, decay;
};

struct Factors {
  float size, root, shrink;
};

INLINE void update(const Factors& f, V& weights, V gradient, V& mean, V& square) {
  mean += (gradient - mean) * 0.1f;
  square = square * 0.999f + gradient * gradient * 0.001f;
  weights = weights * f.shrink - mean * f.size / (root(square) / f.root + 1e-8f);
}

void update(const Adam& a) {
  const double step = *a.step += 1;
  const Factors factors = {(float)(a.rate / (1 - std::pow(0.9, step))),
                           (float)std::sqrt(1 - std::pow(0.999, step)),
                           (float)(1 - a.rate * a.decay)};
  for (int64_t i = 0; i < a.count; i += LANES) {
    float* const places[] = {a.weights + i, a.gradient + i, a.mean + i, a.square + i};
    const size_t bytes = std::min<int64_t>(LANES, a.count - i) * sizeof(float);
    V v[4] = {};
    for (int n = 0; n < 4; ++n) std::memcpy(&v[n], places[n], bytes);
    update(factors, v[0], v[1], v[2], v[3]);
    for (int n = 0; n < 4; ++n) std::memcpy(places[n], &v[n], bytes);
  }
}

// -- the interface's arguments

struct Batch {  // as Batch in stack.py
  const float* const* x;
  int64_t channel, sample;
  const float *factors, *spreads;
  uint64_t seed;
  const float* y;
  int64_t windows;
  const float* const* parameters;
  float* const* gradients;
  const float *mean, *sd, *dropout;
  double pos_weight;
  int64_t threads;
};

Call call_for(Stack& stack, const Batch& batch) {
  Call call = {};
  call.x = batch.x, call.channel = batch.channel, call.sample = batch.sample;
  call.augmentation = {batch.factors, batch.spreads, batch.seed};
  call.batch = batch.windows, call.threads = (int)batch.threads;
  call.parameters = batch.parameters;
  set_scaling(stack, call, batch.mean, batch.sd);
  return call;
}

Call training_call(Stack& stack, const Batch& batch) {
  Call call = call_for(stack, batch);
  call.y = batch.y, call.dropout = batch.dropout;
  call.gradients = batch.gradients, call.pos_weight = batch.pos_weight;
  call.lowest = lowest_trained(stack.shape, batch.gradients);
  stack.slots.need(SLOTS * stack.shape.slot);
  stack.losses.resize(batch.windows);
  call.losses = stack.losses.data();
  return call;
}

}  // namespace

// -- the interface: no function throws; a null pointer or 0 is a lack of memory or threads

extern "C" {

int stack_lanes(void) { return LANES; }

// blocks: [count][channels, dilation, pool]; hidden: width of the head's hidden layer, or 0.
void* stack_open(int64_t channels, int64_t samples, const int64_t* blocks, int64_t count,
                 int64_t hidden) {
  try {
    Stack* stack = new Stack();
    set_levels(stack->shape, (int)channels, samples, blocks, (int)count);
    stack->shape.hidden = (int)hidden;
    stack->shape.features = stack->shape.levels.back().channels;
    set_sizes(stack->shape);
    stack->packed.need(stack->shape.packed);
    return stack;
  } catch (...) {
    return nullptr;
  }
}

void stack_close(void* stack) { delete (Stack*)stack; }

int stack_logits(void* handle, const Batch* batch, float* logits) {
  try {
    Stack& stack = *(Stack*)handle;
    Call call = call_for(stack, *batch);
    call.logits = logits;
    pack_all(stack, call);
    pass_batch(stack, call);
    return 1;
  } catch (...) {
    return 0;
  }
}

// sums: of the losses, then counts of true negatives, false positives, false negatives and true
// positives, where a window is positive from probability 0.5, as a float, on.
int stack_evaluate(void* handle, const Batch* batch, double* sums) {
  try {
    std::vector<float> logits(batch->windows);
    if (!stack_logits(handle, batch, logits.data())) return 0;
    std::fill_n(sums, 5, 0.0);
    for (int64_t n = 0; n < batch->windows; ++n) {
      double loss;
      of_logit(logits[n], batch->y[n], 1.0, loss);
      const bool positive = (float)(1 / (1 + std::exp(-(double)logits[n]))) >= 0.5f;
      sums[0] += loss;
      sums[1 + 2 * (batch->y[n] > 0) + positive] += 1;
    }
    return 1;
  } catch (...) {
    return 0;
  }
}

// loss: the sum of the unweighted losses.
int stack_gradient(void* handle, const Batch* batch, double* loss) {
  try {
    Stack& stack = *(Stack*)handle;
    Call call = training_call(stack, *batch);
    *loss = gradient(stack, call);
    return 1;
  } catch (...) {
    return 0;
  }
}

// An update by Adam after each of `count` batches of the given sizes; `batch` holds them all.
int stack_train(void* handle, const Batch* batch, const int64_t* sizes, int64_t count,
                const Adam* adam, double* loss) {
  try {
    Stack& stack = *(Stack*)handle;
    Call call = training_call(stack, *batch);
    *loss = 0;
    for (int64_t n = 0; n < count; ++n) {
      call.batch = sizes[n];
      *loss += gradient(stack, call);
      update(*adam);
      call.first += sizes[n];
    }
    return 1;
  } catch (...) {
    return 0;
  }
}

// x: [windows][channels][length], multiplied by a factor for each window, and with white noise added
// whose spread is given for each window and channel.
void stack_augment(float* x, int64_t windows, int64_t channels, int64_t length,
                   const float* factors, const float* spreads, uint64_t seed) {
  const Augmentation augmentation = {factors, spreads, seed};
  const long whole = length / LANES * LANES, rest = length - whole;
  for (int64_t n = 0; n < windows; ++n)
    for (int64_t c = 0; c < channels; ++c, x += length) {
      const Change each = augmentation.of(n, (int)c, (int)channels);
      if (!each.changes()) continue;
      float tail[LANES] = {};
      change_row(each, x, 0, whole);
      std::memcpy(tail, x + whole, rest * sizeof(float));
      change_row(each, tail, whole, rest);
      std::memcpy(x + whole, tail, rest * sizeof(float));
    }
}
}

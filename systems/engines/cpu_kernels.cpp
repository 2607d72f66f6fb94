// The grouped expert FFN of engine=cpu: y = act(x W_i + b_i) W_o + b_o, expert after expert, in float32 and bfloat16.
//
// Rows are gathered into packed blocks, multiplied by panels of packed weights, and written back where they belong, so
// that nothing of the size of the batch is copied in between. A unit of work is a few blocks of one expert through both
// products; threads take units as they become free, because experts have different numbers of rows.
//
// Letters: M rows of x, N rows of y, D d_model, F hidden width, I columns of W_i, e experts. A step over the summed dimension takes PAIR
// elements at once: 1 in float32, 2 in bfloat16, whose products x86 adds in pairs into float32 (vdpbf16ps).

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <memory>
#include <numeric>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

// One vector is as wide as the machine's registers; a tile of MAX_ROWS x PANEL results stays in registers.
#if defined(__AVX512F__)
constexpr int LANES = 16, MAX_ROWS = 14;
#elif defined(__AVX2__)
constexpr int LANES = 8, MAX_ROWS = 6;
#else
constexpr int LANES = 4, MAX_ROWS = 10;
#endif
constexpr int PANEL = 2 * LANES;        // columns of a panel of weights
constexpr int STEP = 64;                // summed elements of a block of x that lie together; a multiple of PANEL
constexpr int UNIT_BLOCKS = 42 / MAX_ROWS;  // whose x, hidden part and y fit the second-level cache
constexpr int UNIT_ROWS = UNIT_BLOCKS * MAX_ROWS;
constexpr int HIDDEN_PART = 768;        // hidden units between the two products at a time; a multiple of STEP
constexpr int STEP_BYTES = 4 * PANEL;   // of weights, in either type
constexpr int CACHE_LINE = 64;          // bytes
constexpr int FEW_ROWS = 17;            // of a unit, which needs weights faster than the first-level cache can wait for

typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t Bits __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES), aligned(2)));

int64_t quotient_up(int64_t value, int64_t by) { return (value + by - 1) / by; }
int64_t rounded_up(int64_t value, int64_t multiple) { return quotient_up(value, multiple) * multiple; }

struct Float32 {
  using T = float;
  static constexpr int PAIR = 1;
  static Vector weights(const T* w) { return *reinterpret_cast<const Vector*>(w); }
  static Vector broadcast(const T* x) { return *x - Vector{}; }  // + would have to turn -0 into 0: one more instruction
  static void add_product(Vector& sum, const Vector& x, const Vector& w) { sum += x * w; }
  static void store(T* to, const Vector& value) { *reinterpret_cast<Vector*>(to) = value; }
};

struct BFloat16 {
  using T = uint16_t;
  static constexpr int PAIR = 2;
  // Two elements in each 32-bit lane.
  static Bits weights(const T* w) { return *reinterpret_cast<const Bits*>(w); }
  static Bits broadcast(const T* x) {
    uint32_t pair;
    std::memcpy(&pair, x, 4);
    return Bits{} + pair;
  }
  static void add_product(Vector& sum, const Bits& x, const Bits& w) {
#ifdef __AVX512BF16__
    sum = (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)w);
#else
    sum += (Vector)(x << 16) * (Vector)(w << 16) + (Vector)(x & 0xffff0000u) * (Vector)(w & 0xffff0000u);
#endif
  }
  // To the nearest, ties to even; rounding could carry a NaN into infinity.
  static void store(T* to, const Vector& value) {
    const Bits bits = (Bits)value, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    *reinterpret_cast<Halves*>(to) = __builtin_convertvector(value == value ? rounded : Bits{} + 0x7fc0, Halves);
  }
};

// What memory brings during a multiplication, so many bytes a step; the first-level cache can wait for few lines only.
struct Fetch {
  const char* from;
  int64_t bytes;
  bool second_level;

  void step() {
    for (int line = 0; line < STEP_BYTES; line += CACHE_LINE)
      second_level ? __builtin_prefetch(from + line, 0, 2) : __builtin_prefetch(from + line);
    from += bytes;
  }
};

// Calls finish(row, sum, sum) with each row's PANEL sums, x w over `length` elements.
// x: [length/STEP][ROWS][STEP], w: [length/PAIR][PANEL][PAIR].
template <class Type, int ROWS, class Finish>
void multiply(const typename Type::T* x, const typename Type::T* w, int64_t length, Fetch fetch, const Finish& finish) {
  constexpr int PAIR = Type::PAIR;
  Vector sum[ROWS][2] = {};
  for (; length > 0; length -= STEP, x += ROWS * STEP) {
    const int steps = std::min<int64_t>(length, STEP);
    for (int step = 0; step < steps; step += PAIR, w += PANEL * PAIR) {
      fetch.step();
      const auto w0 = Type::weights(w), w1 = Type::weights(w + LANES * PAIR);
#pragma GCC unroll 16
      for (int row = 0; row < ROWS; ++row) {
        const auto broadcast = Type::broadcast(x + row * STEP + step);
        Type::add_product(sum[row][0], broadcast, w0);
        Type::add_product(sum[row][1], broadcast, w1);
      }
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < ROWS; ++row) finish(row, sum[row][0], sum[row][1]);
}

// `multiply` for a number of rows known at run time.
template <class Type, class Finish>
void multiply(int64_t rows, const typename Type::T* x, const typename Type::T* w, int64_t length, const Fetch& fetch,
              const Finish& finish) {
  using Kernel = void (*)(const typename Type::T*, const typename Type::T*, int64_t, Fetch, const Finish&);
  static constexpr auto KERNELS = []<int... I>(std::integer_sequence<int, I...>) {
    return std::array<Kernel, sizeof...(I)>{multiply<Type, I + 1, Finish>...};
  }(std::make_integer_sequence<int, MAX_ROWS>());
  KERNELS[rows - 1](x, w, length, fetch, finish);
}

// e^x to 2 units in the last place, for x from -87 to 88, beyond which it is as there: 2^n e^r, |r| <= ln(2)/2.
Vector exponential(const Vector& value) {
  const Vector zero{};
  Vector x = value > 88.f ? zero + 88.f : value;
  x = x < -87.f ? zero - 87.f : x;
  const Vector shifted = x * 1.44269504f + 12582912.f, n = shifted - 12582912.f;  // rounds to a whole number
  const Vector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vector e = r * 1.9875691500e-4f + 1.3981999507e-3f;
  e = e * r + 8.3334519073e-3f;
  e = e * r + 4.1665795894e-2f;
  e = e * r + 1.6666665459e-1f;
  e = e * r + 5.0000001201e-1f;
  e = e * r * r + r + 1.f;
  return (Vector)((Bits)e + ((Bits)shifted << 23));
}

// x / (1 + e^-z): x times the logistic function of z; NaN stays.
Vector times_sigmoid(const Vector& x, const Vector& z) { return x / (1.f + exponential(-z)); }

// What the sums of two vectors of W_i's columns become: of ReLU as many hidden units; of a gated activation half, the
// first vector being of the gate.
struct Relu {
  static constexpr bool GATED = false;
  static Vector apply(const Vector& sum) {
    const Vector zero{};  // a maximum would hide NaN
    return sum < zero ? zero : sum;
  }
};

struct SwiGlu {
  static constexpr bool GATED = true;
  static Vector apply(const Vector& gate, const Vector& up) { return times_sigmoid(gate, gate) * up; }
};

struct GeGlu {  // GELU by the hyperbolic tangent, whose x (1 + tanh(z)) / 2 is x times the logistic function of 2z
  static constexpr bool GATED = true;
  static Vector apply(const Vector& gate, const Vector& up) {
    return times_sigmoid(gate, 1.5957691216f * (gate + 0.044715f * gate * gate * gate)) * up;
  }
};

struct ClampedSwiGlu {  // gpt-oss's
  static constexpr bool GATED = true;
  static Vector apply(const Vector& gate, const Vector& up) {
    const Vector zero{}, most = zero + 7.f, least = zero - 7.f;
    const Vector g = gate > most ? most : gate, u = up > most ? most : up < least ? least : up;
    return times_sigmoid(g, 1.702f * g) * (u + 1.f);
  }
};

struct Sizes {
  int64_t d_model, hidden, top_k;
};

// Rows first .. first + rows of a unit, at most MAX_ROWS.
struct Block {
  int64_t first, rows;
};

// Rows of one expert from place `start` of the order on.
struct Unit {
  int64_t expert, start, num_blocks;
  Block blocks[UNIT_BLOCKS];

  // Block i's share of the panel that comes next, so that memory is asked evenly while all blocks use this one.
  template <class T>
  Fetch share(int64_t i, const T* panel, int64_t length) const {
    const Block& last = blocks[num_blocks - 1];
    const auto* from = reinterpret_cast<const char*>(panel + PANEL * length * i / num_blocks);
    return {from, STEP_BYTES / num_blocks, last.first + last.rows <= FEW_ROWS};
  }
};

// Each expert's rows in as few blocks as hold them and these in as few units, all about equally large: every unit reads
// all weights of its expert, however few rows it has.
std::vector<Unit> units_of(const int64_t* rows_e, int64_t num_experts) {
  std::vector<Unit> units;
  for (int64_t expert = 0, start = 0; expert < num_experts; start += rows_e[expert++]) {
    const int64_t rows = rows_e[expert], blocks = quotient_up(rows, MAX_ROWS), count = quotient_up(blocks, UNIT_BLOCKS);
    for (int64_t i = 0, block = 0; i < count; ++i) {
      Unit& unit = units.emplace_back(Unit{expert, start + rows * block / blocks, 0, {}});
      for (; block < blocks * (i + 1) / count; ++block) {
        const int64_t first = rows * block / blocks, next = rows * (block + 1) / blocks;
        unit.blocks[unit.num_blocks++] = {start + first - unit.start, next - first};
      }
    }
  }
  return units;
}

template <class Type>
struct Buffers {
  using T = typename Type::T;
  std::unique_ptr<T[]> x, hidden;
  std::unique_ptr<float[]> y;
  explicit Buffers(const Sizes& sizes)
      : x(new T[UNIT_ROWS * rounded_up(sizes.d_model, STEP)]),
        hidden(new T[UNIT_ROWS * HIDDEN_PART]),
        y(new float[UNIT_ROWS * rounded_up(sizes.d_model, PANEL)]) {}
};

template <class Type, class Activation>
class GroupedFFN {
  using T = typename Type::T;
  static constexpr int UNITS = Activation::GATED ? LANES : PANEL;  // hidden units of a panel of W_i

 public:
  GroupedFFN(const T* x, const int64_t* order, const float* weight, const T* wi, const T* wo, const float* bi,
             const float* bo, T* y, Sizes sizes)
      : x_(x), order_(order), weight_(weight), wi_(wi), wo_(wo), bi_(bi), bo_(bo), y_(y), sizes_(sizes),
        depth_(rounded_up(sizes.d_model, Type::PAIR)), width_(rounded_up(sizes.d_model, PANEL)) {}

  void run(const Unit& unit, Buffers<Type>& buffers) const {
    const int64_t start = unit.start, count = unit.num_blocks;
    const Block* blocks = unit.blocks;
    for (int64_t i = 0; i < count; ++i) gather(start, blocks[i], buffers.x.get());
    const T* wi = wi_ + unit.expert * depth_ * sizes_.hidden / UNITS * PANEL;
    const T* wo = wo_ + unit.expert * width_ * sizes_.hidden;
    const float* bi = bi_ ? bi_ + unit.expert * sizes_.hidden / UNITS * PANEL : nullptr;
    const float* bo = bo_ ? bo_ + unit.expert * width_ : nullptr;
    for (int64_t from = 0; from < sizes_.hidden; from += HIDDEN_PART) {
      const int64_t part = std::min<int64_t>(HIDDEN_PART, sizes_.hidden - from);
      const T *w = wi + from / UNITS * PANEL * depth_, *wo_part = wo + from * PANEL;
      for (int64_t f = 0; f < part; f += UNITS, w += PANEL * depth_) {
        const T* next = f + UNITS < part ? w + PANEL * depth_ : wo_part;
        const float* bias = bi ? bi + (from + f) / UNITS * PANEL : nullptr;
        for (int64_t i = 0; i < count; ++i) hide(blocks[i], w, bias, f, unit.share(i, next, depth_), buffers);
      }
      const bool first = from == 0, last = from + part == sizes_.hidden;
      const T* wi_part = w;
      w = wo_part;
      for (int64_t d = 0; d < width_; d += PANEL, w += PANEL * sizes_.hidden) {
        const T* next = d + PANEL < width_ ? w + PANEL * sizes_.hidden : wi_part;
        for (int64_t i = 0; i < count; ++i)
          show(start, blocks[i], w, bo, d, part, first, last, unit.share(i, next, part), buffers);
      }
    }
  }

 private:
  void gather(int64_t start, Block block, T* x) const {
    const int64_t d_model = sizes_.d_model;
    x += block.first * rounded_up(d_model, STEP);
    for (int64_t row = 0; row < block.rows; ++row) {
      const T* from = x_ + order_[start + block.first + row] / sizes_.top_k * d_model;
      for (int64_t d = 0; d < d_model; d += STEP) {
        T* to = x + d * block.rows + row * STEP;
        const int64_t length = std::min<int64_t>(STEP, d_model - d);
        std::memcpy(to, from + d, length * sizeof(T));
        if (length % Type::PAIR) to[length] = 0;
      }
    }
  }

  // UNITS hidden units from f on, of this part, into the layout of x.
  void hide(Block block, const T* w, const float* bias, int64_t f, const Fetch& fetch, Buffers<Type>& buffers) const {
    const T* x = buffers.x.get() + block.first * rounded_up(sizes_.d_model, STEP);
    T* hidden = buffers.hidden.get() + block.first * HIDDEN_PART + f / STEP * STEP * block.rows + f % STEP;
    multiply<Type>(block.rows, x, w, depth_, fetch, [hidden, bias](int row, Vector sum0, Vector sum1) {
      if (bias) sum0 += Float32::weights(bias), sum1 += Float32::weights(bias + LANES);
      if constexpr (Activation::GATED) {
        Type::store(hidden + row * STEP, Activation::apply(sum0, sum1));
      } else {
        Type::store(hidden + row * STEP, Activation::apply(sum0));
        Type::store(hidden + row * STEP + LANES, Activation::apply(sum1));
      }
    });
  }

  // What this part of the hidden layer adds to PANEL columns of y from d on; the last part's sums go where they belong.
  void show(int64_t start, Block block, const T* w, const float* bias, int64_t d, int64_t part, bool first, bool last,
            const Fetch& fetch, Buffers<Type>& buffers) const {
    float* y = buffers.y.get() + block.first * width_ + d;
    const int64_t *order = order_ + start + block.first, columns = std::min<int64_t>(PANEL, sizes_.d_model - d);
    const T* hidden = buffers.hidden.get() + block.first * HIDDEN_PART;
    multiply<Type>(block.rows, hidden, w, part, fetch, [&](int row, Vector sum0, Vector sum1) {
      Vector* so_far = reinterpret_cast<Vector*>(y + row * width_);
      if (!first) sum0 += so_far[0], sum1 += so_far[1];
      if (last && bias) sum0 += Float32::weights(bias + d), sum1 += Float32::weights(bias + d + LANES);
      if (last && weight_) sum0 *= weight_[order[row]], sum1 *= weight_[order[row]];
      if (!last) {
        so_far[0] = sum0, so_far[1] = sum1;
      } else if (T* to = y_ + order[row] * sizes_.d_model + d; columns == PANEL) {
        Type::store(to, sum0), Type::store(to + LANES, sum1);
      } else {
        T rounded[PANEL];
        Type::store(rounded, sum0), Type::store(rounded + LANES, sum1);
        std::memcpy(to, rounded, columns * sizeof(T));
      }
    });
  }

  const T *x_;
  const int64_t* order_;
  const float* weight_; // none: 1
  const T *wi_, *wo_;
  const float *bi_, *bo_; // none: 0
  T* y_;
  Sizes sizes_;
  int64_t depth_, width_; // d_model as the summed dimension and as columns, padded
};

template <class Type, class Activation>
void run(const at::Tensor& x_MD, const at::Tensor& order_N, const at::Tensor& rows_e, const at::Tensor& wi,
         const at::Tensor& wo, const float* bi, const float* bo, const float* weight, at::Tensor& y_ND, int64_t top_k) {
  using T = typename Type::T;
  const Sizes sizes{x_MD.size(1), wi.size(1) * (Activation::GATED ? LANES : PANEL), top_k};
  TORCH_CHECK(sizes.hidden == wo.size(2) * Type::PAIR, "W_i has ", sizes.hidden, " hidden units and W_o ",
              wo.size(2) * Type::PAIR);
  const auto data = [](const at::Tensor& tensor) { return static_cast<T*>(tensor.data_ptr()); };
  const GroupedFFN<Type, Activation> ffn(data(x_MD), order_N.const_data_ptr<int64_t>(), weight, data(wi), data(wo), bi,
                                         bo, data(y_ND), sizes);
  const auto units = units_of(rows_e.const_data_ptr<int64_t>(), rows_e.size(0));
  std::atomic<size_t> next{0};
  at::parallel_for(0, std::min<int64_t>(at::get_num_threads(), units.size()), 1, [&](int64_t, int64_t) {
    Buffers<Type> buffers(sizes);
    for (size_t i; (i = next++) < units.size();) ffn.run(units[i], buffers);
  });
}

using Optional = std::optional<at::Tensor>;

// The numbers of an optional float32 tensor of so many; none: nullptr.
const float* floats(const Optional& tensor, int64_t count, const char* what) {
  if (!tensor) return nullptr;
  TORCH_CHECK(tensor->is_cpu() && tensor->scalar_type() == at::kFloat && tensor->is_contiguous() &&
              tensor->numel() == count, what, " are ", count, " float32 that lie together");
  return tensor->const_data_ptr<float>();
}

// Calls chosen.template operator()<Activation>() for the activation of this name.
template <class Chosen>
void with_activation(c10::string_view name, const Chosen& chosen) {
  if (name == "relu") chosen.template operator()<Relu>();
  else if (name == "swiglu") chosen.template operator()<SwiGlu>();
  else if (name == "geglu") chosen.template operator()<GeGlu>();
  else if (name == "clamped_swiglu") chosen.template operator()<ClampedSwiGlu>();
  else TORCH_CHECK(false, "engine=cpu has no activation ", name);
}

// y_ND[order_N[i]] = weight_N[order_N[i]] (act(x_MD[order_N[i] / top_k] W_i + b_i) W_o + b_o) of place i's expert; the
// first rows_e[0] places belong to expert 0, and so on. Weights [e, K, N] are packed as [e, N/PANEL, K/PAIR, PANEL,
// PAIR], padded with zeros; of a gated activation, each panel of W_i has LANES columns of the gate and then the LANES of
// the same hidden units. Copies at places past sum(rows_e) are left undefined.
at::Tensor grouped_ffn(const at::Tensor& x_MD, const at::Tensor& order_N, const at::Tensor& rows_e,
                       const at::Tensor& wi, const at::Tensor& wo, const Optional& bi, const Optional& bo,
                       int64_t top_k, const Optional& weight_N, c10::string_view activation) {
  const auto x = x_MD.contiguous(), order = order_N.contiguous(), rows = rows_e.contiguous();
  for (const auto& tensor : {x, order, rows, wi, wo}) TORCH_CHECK(tensor.is_cpu(), "engine=cpu wants tensors on the CPU");
  TORCH_CHECK(x.scalar_type() == wi.scalar_type() && x.scalar_type() == wo.scalar_type(), "x and weights differ in type");
  TORCH_CHECK(order.scalar_type() == at::kLong && rows.scalar_type() == at::kLong, "indices and counts are int64");
  TORCH_CHECK(x.dim() == 2 && top_k > 0 && order.numel() == x.size(0) * top_k, "order has not top_k copies of each row");
  TORCH_CHECK(wi.is_contiguous() && wo.is_contiguous() && wi.dim() == 5 && wo.dim() == 5, "weights are not packed");
  TORCH_CHECK(rows.numel() == wi.size(0) && rows.numel() == wo.size(0), "one count for each expert");
  int64_t counted = 0;
  for (int64_t e = 0; e < rows.numel(); ++e) {
    const int64_t count = rows.const_data_ptr<int64_t>()[e];
    TORCH_CHECK(count >= 0, "expert ", e, " has ", count, " copies");
    counted += count;
  }
  TORCH_CHECK(counted <= order.numel(), "experts have ", counted, " copies, of ", order.numel());
  const Optional weights = weight_N ? Optional(weight_N->contiguous()) : weight_N;
  const float* weight = floats(weights, order.numel(), "weights of the copies");
  const float* bias_i = floats(bi, wi.size(0) * wi.size(1) * PANEL, "biases of W_i");
  const float* bias_o = floats(bo, wo.size(0) * wo.size(1) * PANEL, "biases of W_o");
  auto y_ND = at::empty({order.size(0), x.size(1)}, x.options());
  with_activation(activation, [&]<class Activation>() {
    if (x.scalar_type() == at::kFloat)
      run<Float32, Activation>(x, order, rows, wi, wo, bias_i, bias_o, weight, y_ND, top_k);
    else if (x.scalar_type() == at::kBFloat16)
      run<BFloat16, Activation>(x, order, rows, wi, wo, bias_i, bias_o, weight, y_ND, top_k);
    else
      TORCH_CHECK(false, "engine=cpu multiplies float32 and bfloat16, got ", x.scalar_type());
  });
  return y_ND;
}

// Which copies belong to expert 0, 1, ..., first come first, and how many: a counting sort. Copies of expert
// `num_experts` (padding) come last and are not counted.
std::tuple<at::Tensor, at::Tensor> group_by_expert(const at::Tensor& expert_N, int64_t num_experts) {
  const auto expert = expert_N.contiguous();
  TORCH_CHECK(expert.scalar_type() == at::kLong, "experts are int64");
  const auto* experts = expert.const_data_ptr<int64_t>();
  std::vector<int64_t> place(num_experts + 1, 0);
  for (int64_t n = 0; n < expert.numel(); ++n) {
    TORCH_CHECK(0 <= experts[n] && experts[n] <= num_experts, "expert ", experts[n], " of ", num_experts);
    ++place[experts[n]];
  }
  auto rows_E = at::empty({num_experts}, expert.options()), order_N = at::empty_like(expert);
  std::copy_n(place.begin(), num_experts, rows_E.mutable_data_ptr<int64_t>());
  std::exclusive_scan(place.begin(), place.end(), place.begin(), int64_t{0});
  auto* order = order_N.mutable_data_ptr<int64_t>();
  for (int64_t n = 0; n < expert.numel(); ++n) order[place[experts[n]]++] = n;
  return {order_N, rows_E};
}

// Columns of a panel of weights.
int64_t panel() { return PANEL; }

} // namespace

TORCH_LIBRARY(moe_cpu, library) {
  library.def(
      "grouped_ffn(Tensor x, Tensor order, Tensor rows, Tensor wi, Tensor wo, Tensor? bi, Tensor? bo, int top_k, "
      "Tensor? weight, str activation) -> Tensor");
  library.def("group_by_expert(Tensor expert, int num_experts) -> (Tensor, Tensor)");
  library.def("panel() -> int", panel);
}

// For CPU tensors: others have no memory that these could read.
TORCH_LIBRARY_IMPL(moe_cpu, CPU, library) {
  library.impl("grouped_ffn", grouped_ffn);
  library.impl("group_by_expert", group_by_expert);
}

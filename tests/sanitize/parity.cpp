// SPDX-License-Identifier: BSD-3-Clause
// Do the CPU kernels compute the formulas for all instruction sets, dtypes, threads and odd sizes? Without torch, so
// that a sanitizer sees everything: each operand is a separate allocation of exactly its size.
#include <stdlib.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cpu/convert.h"
#include "math/reduction.h"
#include "math/sgd.h"
#include "math/with_loss.h"

extern "C" void omp_set_num_threads(int threads);

namespace linreg {
namespace {

int failures = 0;

void expect(bool right, const std::string& what) {
  if (right) return;
  std::printf("wrong: %s\n", what.c_str());
  ++failures;
}

std::mt19937_64 generator(1);

double random_number() { return std::normal_distribution<double>()(generator); }

// An allocation of exactly `bytes`, aligned like torch's memory and filled with nan.
class Memory {
 public:
  explicit Memory(size_t bytes) : bytes_(bytes) {
    void* data = nullptr;
    if (posix_memalign(&data, 64, bytes ? bytes : 1)) abort();
    std::memset(data, 0xff, bytes);
    data_.reset(data);
  }
  void* data() const { return data_.get(); }
  bool same(const Memory& other) const { return !std::memcmp(data(), other.data(), bytes_); }
  void copy(const Memory& other) { std::memcpy(data(), other.data(), bytes_); }

 private:
  struct Free {
    void operator()(void* data) const { free(data); }
  };
  size_t bytes_;
  std::unique_ptr<void, Free> data_;
};

// A matrix with `gap` numbers between rows; the last row ends with the allocation.
struct Matrix {
  int64_t rows, columns, stride;
  Dtype dtype;
  Memory memory;

  Matrix(int64_t rows, int64_t columns, Dtype dtype, int64_t gap = 0)
      : rows(rows),
        columns(columns),
        stride(columns + gap),
        dtype(dtype),
        memory(rows && columns ? ((rows - 1) * stride + columns) * size_of(dtype) : 0) {}

  void* at(int64_t i) const { return static_cast<char*>(memory.data()) + i * stride * int64_t(size_of(dtype)); }
  Matrix& randomise(double scale = 1, bool positive = false) {
    std::vector<double> row(columns);
    for (int64_t i = 0; i < rows; ++i) {
      for (double& value : row) value = scale * random_number(), value = positive ? std::fabs(value) : value;
      cpu::store(row.data(), columns, dtype, at(i));
    }
    return *this;
  }
  double operator()(int64_t i, int64_t j) const {
    return cpu::load_one<double>(static_cast<char*>(at(i)) + j * int64_t(size_of(dtype)), dtype);
  }
  View view() const { return {memory.data(), stride, 1, dtype}; }
  Rows written() const { return {memory.data(), stride, dtype}; }
};

// Problem::multiply in loops.
void multiply(int64_t m, int64_t l, int64_t n, const View& a, const View& b, const Rows& sum, bool add) {
  const auto number = [](const View& view, int64_t i, int64_t j) {
    return cpu::load_one<double>(cpu::at(view, i, j), view.dtype);
  };
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      char* const to = static_cast<char*>(sum.data) + (i * sum.row_stride + j) * int64_t(size_of(sum.dtype));
      double total = add ? cpu::load_one<double>(to, sum.dtype) : 0;
      for (int64_t h = 0; h < l; ++h) total += number(a, i, h) * number(b, h, j);
      cpu::store(&total, 1, sum.dtype, to);
    }
}

struct Case {
  int64_t n, d, k;
  Dtype data, parameter;
  Loss loss = Loss::mse;
  Reduction reduction = Reduction::mean;
  bool bias = true, weighted = false, gaps = false;

  std::string name() const {
    static const char* const dtypes[] = {"float32", "float64", "bfloat16", "float16"};
    static const char* const reductions[] = {"none", "mean", "sum"};
    return "[" + std::to_string(n) + ", " + std::to_string(d) + "] towards " + std::to_string(k) + ", " +
           dtypes[int(data)] + " with " + dtypes[int(parameter)] + ", " + std::string(kLossNames[size_t(loss)]) + ", " +
           reductions[int(reduction)] + (bias ? "" : ", no bias") + (weighted ? ", weighted" : "") +
           (gaps ? ", rows apart" : "");
  }
};

// Sums in double, and the absolute sums of their terms.
struct Sums {
  std::vector<double> value, terms;
  explicit Sums(int64_t count) : value(count), terms(count) {}
  void add(int64_t i, double term, double size) { value[i] += term, terms[i] += std::fabs(size); }
};

struct Operands {
  Case c;
  Matrix x, w, b, y, v;

  explicit Operands(const Case& c)
      : c(c),
        x(c.n, c.d, c.data, c.gaps ? 3 : 0),
        w(c.k, c.d, c.parameter, c.gaps ? 5 : 0),
        b(1, c.bias ? c.k : 0, c.parameter),
        y(c.n, c.k, c.data, c.gaps ? 2 : 0),
        v(c.weighted ? c.n : 0, c.k, c.data) {
    x.randomise(), w.randomise(0.3), b.randomise(), y.randomise(), v.randomise(1, true);
  }

  Problem problem(int threads) const {
    Problem p;
    p.n = c.n, p.d = c.d, p.k = c.k;
    p.x = x.view(), p.w = w.view(), p.y = y.view();
    if (c.bias) p.b = b.view();
    if (c.weighted) p.v = v.view();
    p.loss = c.loss, p.delta = 0.75, p.reduction = c.reduction;
    p.threads = threads;
    p.multiply = multiply;
    return p;
  }

  // The loss (reduced or not) and the gradients of X, W, b and Y, from the formulas.
  struct Exact {
    Sums loss, input, weight, bias, target;
  };
  Exact exact() const {
    const bool none = c.reduction == Reduction::none;
    Exact e{Sums(none ? c.n * c.k : 1), Sums(c.n * c.d), Sums(c.k * c.d), Sums(c.k), Sums(c.n * c.k)};
    if (c.n * c.k == 0 && c.reduction == Reduction::mean) e.loss.value[0] = NAN;
    double total = 0;
    for (int64_t i = 0; i < c.n && c.weighted; ++i)
      for (int64_t t = 0; t < c.k; ++t) total += v(i, t);
    const double scale = reduction_scale(problem(1), total);
    for (int64_t i = 0; i < c.n; ++i)
      for (int64_t t = 0; t < c.k; ++t) {
        double r = (c.bias ? b(0, t) : 0) - y(i, t), size = std::fabs(r);
        for (int64_t j = 0; j < c.d; ++j) r += x(i, j) * w(t, j), size += std::fabs(x(i, j) * w(t, j));
        const double weight = c.weighted ? v(i, t) : 1;
        double loss = 0, derivative = 0;
        with_loss(c.loss, [&]<Loss kLoss>() { loss = loss_value<kLoss>(r, 0.75), derivative = dloss<kLoss>(r, 0.75); });
        const double g = scale * weight * derivative, most = std::fabs(scale * weight) * (std::fabs(derivative) + size);
        e.loss.add(none ? i * c.k + t : 0, (none ? 1 : scale) * weight * loss,
                   (none ? 1 : scale) * weight * (std::fabs(loss) + size * size));
        for (int64_t j = 0; j < c.d; ++j) {
          e.input.add(i * c.d + j, g * w(t, j), most * w(t, j));
          e.weight.add(t * c.d + j, g * x(i, j), most * x(i, j));
        }
        e.bias.add(t, g, most);
        e.target.add(i * c.k + t, -g, most);
      }
    return e;
  }
};

double unit(Dtype dtype) {
  switch (dtype) {
    case Dtype::float32:
      return std::ldexp(1.0, -23);
    case Dtype::float64:
      return std::ldexp(1.0, -52);
    case Dtype::bfloat16:
      return std::ldexp(1.0, -7);
    default:
      return std::ldexp(1.0, -10);
  }
}

constexpr double kUnits = 16;  // tests/accuracy.py says why

// Within kUnits units in the last place of the absolute sum of the terms.
void expect_near(const Matrix& ours, const Sums& sums, const std::string& what) {
  for (size_t i = 0; i < sums.value.size(); ++i) {
    const double number = ours(int64_t(i) / ours.columns, int64_t(i) % ours.columns);
    const double allowed = kUnits * unit(ours.dtype) * sums.terms[i] + 1e-7 * (ours.dtype == Dtype::float16);
    if (std::isnan(sums.value[i]) ? !std::isnan(number) : !(std::fabs(number - sums.value[i]) <= allowed)) {
      char numbers[120];
      std::snprintf(numbers, sizeof(numbers), ": number %zu is %.9g, not %.9g", i, number, sums.value[i]);
      return expect(false, what + numbers);
    }
  }
}

void check_loss(const Case& c) {
  const Operands operands(c);
  const Operands::Exact exact = operands.exact();
  std::unique_ptr<Memory> first;
  for (const int threads : {1, 2, 3})
    for (const bool all : {true, false}) {
      omp_set_num_threads(threads);
      const Problem problem = operands.problem(threads);
      const bool none = c.reduction == Reduction::none;
      Matrix loss(none ? c.n : 1, none ? c.k : 1, c.parameter), input(all ? c.n : 0, c.d, gradient_dtype(c.data)),
          target(all ? c.n : 0, c.k, gradient_dtype(c.data)), weight(c.k, c.d, gradient_dtype(c.parameter)),
          bias(1, c.k, gradient_dtype(c.parameter));
      const Gradients gradients{all ? input.memory.data() : nullptr, weight.memory.data(), bias.memory.data(),
                                all ? target.memory.data() : nullptr};
      const Memory workspace(cpu::loss_workspace(problem, gradients));
      cpu::linear_loss(problem, gradients, loss.memory.data(), workspace.data());
      const std::string what = c.name() + ", " + std::to_string(threads) + " threads: ";
      expect_near(loss, exact.loss, what + "loss");
      expect_near(weight, exact.weight, what + "gradient of the weight");
      expect_near(bias, exact.bias, what + "gradient of the bias");
      if (!all) continue;
      expect_near(input, exact.input, what + "gradient of the input");
      expect_near(target, exact.target, what + "gradient of the target");
      if (!first)
        first = std::make_unique<Memory>(std::move(weight.memory));
      else
        expect(first->same(weight.memory), what + "different bits than with one thread");
    }
}

Sgd settings() {
  Sgd sgd;
  sgd.lr = 0.05, sgd.momentum = 0.9, sgd.dampening = 0.1, sgd.weight_decay = 0.01;
  return sgd;
}

// Parameters with momentum buffers, to update.
struct Trained {
  Matrix w, b, w_buffer, b_buffer;

  explicit Trained(const Operands& operands)
      : w(operands.w.rows, operands.w.columns, operands.w.dtype, operands.w.stride - operands.w.columns),
        b(1, operands.b.columns, operands.b.dtype),
        w_buffer(w.rows, w.columns, w.dtype),
        b_buffer(1, b.columns, b.dtype) {
    w.memory.copy(operands.w.memory), b.memory.copy(operands.b.memory);
  }
  Problem in(Problem problem) const {
    problem.w = w.view();
    if (b.columns) problem.b = b.view();
    return problem;
  }
  Parameter weight(bool first) const { return {w.written(), w_buffer.written(), first}; }
  Parameter bias(bool first) const {
    return b.columns ? Parameter{b.written(), b_buffer.written(), first} : Parameter{};
  }
  bool same(const Trained& other) const {
    return w.memory.same(other.w.memory) && b.memory.same(other.b.memory) &&
           w_buffer.memory.same(other.w_buffer.memory) && b_buffer.memory.same(other.b_buffer.memory);
  }
};

// A step follows the rule; a run has the bits of the same steps taken one by one.
void check_steps(const Case& c) {
  const Operands operands(c);
  const Sgd sgd = settings();
  const int64_t batch = c.n < 3 ? 1 : c.n / 2 + 1;  // the last batch of an epoch is smaller
  std::vector<int64_t> order(c.n);
  for (int64_t& row : order) row = int64_t(generator() % uint64_t(c.n));
  Run run;
  run.order = order.data(), run.rows = c.n, run.batch_size = batch;
  run.epoch_steps = (c.n + batch - 1) / batch, run.end = 2 * run.epoch_steps;

  const Operands::Exact exact = operands.exact();
  Trained one(operands);
  {
    const Problem problem = one.in(operands.problem(2));
    const Memory workspace(cpu::sgd_workspace(problem));
    Matrix loss(1, 1, c.parameter);
    cpu::sgd_step(problem, sgd, one.weight(true), one.bias(true), false, loss.memory.data(), workspace.data());
    expect_near(loss, exact.loss, c.name() + ": loss of a step");
    Sums w(c.k * c.d);
    for (int64_t i = 0; i < c.k * c.d; ++i) {
      const double before = operands.w(i / c.d, i % c.d);
      w.add(i, sgd_update(before, 0.0, exact.weight.value[i], sgd, true).p,
            std::fabs(before) + sgd.lr * exact.weight.terms[i]);
    }
    expect_near(one.w, w, c.name() + ": weight after a step");
  }

  std::unique_ptr<Trained> first;
  for (const int threads : {1, 2}) {
    omp_set_num_threads(threads);
    Trained trained(operands);
    const Problem problem = trained.in(operands.problem(threads));
    const Memory workspace(cpu::run_workspace(problem, run, nullptr)), losses(run.end * size_of(c.parameter));
    const int64_t taken = cpu::sgd_run(problem, run, sgd, trained.weight(true), trained.bias(true), true, losses.data(),
                                       nullptr, nullptr, workspace.data());
    expect(taken == run.end, c.name() + ": steps of a run");
    if (first)
      expect(first->same(trained), c.name() + ": a run has different bits with two threads");
    else
      first = std::make_unique<Trained>(std::move(trained));
  }
  Trained stepped(operands);
  for (int64_t step = 0; step < run.end; ++step) {
    const int64_t begin = step % run.epoch_steps * batch, rows = std::min(batch, c.n - begin);
    Matrix x(rows, c.d, c.data), y(rows, c.k, c.data), v(c.weighted ? rows : 0, c.k, c.data), loss(1, 1, c.parameter);
    const auto gather = [&](const Matrix& from, const Matrix& to) {
      for (int64_t i = 0; i < to.rows; ++i)
        std::memcpy(to.at(i), from.at(order[begin + i]), to.columns * size_of(to.dtype));
    };
    gather(operands.x, x), gather(operands.y, y), gather(operands.v, v);
    Problem problem = stepped.in(operands.problem(1));
    problem.n = rows, problem.x = x.view(), problem.y = y.view();
    if (c.weighted) problem.v = v.view();
    const Memory workspace(cpu::sgd_workspace(problem));
    cpu::sgd_step(problem, sgd, stepped.weight(step == 0), stepped.bias(step == 0), true, loss.memory.data(),
                  workspace.data());
  }
  expect(stepped.same(*first), c.name() + ": a run has different bits than its steps");
}

void check(const Case& c) {
  check_loss(c);
  if (c.n > 0 && c.reduction == Reduction::mean) check_steps(c);
}

int run() {
  const Dtype f32 = Dtype::float32, f64 = Dtype::float64, bf16 = Dtype::bfloat16, f16 = Dtype::float16;
  const std::pair<Dtype, Dtype> dtypes[] = {{f32, f32}, {f64, f64}, {bf16, bf16}, {f16, f16}, {bf16, f32}, {f16, f32}};
  int64_t cases = 0;
  // Sizes on both sides of each boundary, in every tier: few features, one target, two, several, matrix products.
  for (const auto& [data, parameter] : dtypes)
    for (const auto& [d, k] : std::initializer_list<std::pair<int64_t, int64_t>>{
             {1, 1}, {3, 1}, {8, 1}, {5, 3}, {9, 1}, {17, 1}, {130, 1}, {33, 2}, {18, 3}, {9, 4}, {31, 7}, {257, 9}})
      for (const int64_t n : {1, 7, 9, 65, 140}) check({n, d, k, data, parameter}), ++cases;
  for (const auto& [data, parameter] : dtypes)
    for (size_t loss = 0; loss < kLossNames.size(); ++loss)
      for (const Reduction reduction : {Reduction::none, Reduction::mean, Reduction::sum})
        for (const auto& [d, k] :
             std::initializer_list<std::pair<int64_t, int64_t>>{{4, 1}, {20, 1}, {21, 5}, {40, 17}})
          for (const bool odd : {false, true})
            check({67, d, k, data, parameter, Loss(loss), reduction, !odd, odd, odd}), ++cases;
  // Several chunks, which threads share.
  for (const Case& c : {Case{9000, 8, 1, f32, f32}, Case{3000, 40, 1, f32, f32}, Case{2000, 33, 6, f32, f32},
                        Case{900, 40, 20, f32, f32}, Case{700, 90, 1, f64, f64}})
    check(c), ++cases;
  for (const Case& c :
       {Case{0, 3, 2, f32, f32}, Case{4, 0, 2, f32, f32}, Case{0, 20, 5, f32, f32}, Case{3, 0, 20, f32, f32}})
    check_loss(c), ++cases;
  std::printf("%ld cases, %d wrong\n", long(cases), failures);
  return failures != 0;
}

}  // namespace
}  // namespace linreg

int main() { return linreg::run(); }

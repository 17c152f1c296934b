// SPDX-License-Identifier: BSD-3-Clause
#include "check.h"

#include <c10/util/Exception.h>
#include <c10/util/SmallVector.h>
#include <c10/util/accumulate.h>

#include <array>
#include <cmath>
#include <sstream>
#include <string>

namespace linreg::torch_ops {
namespace {

constexpr std::array<std::string_view, 3> kReductions = {"none", "mean", "sum"};
constexpr const char *kParameters[] = {"linear_weight", "linear_bias"},
                     *kBuffers[] = {"momentum_buffers[0]", "momentum_buffers[1]"};
constexpr at::ScalarType kDtypes[] = {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf};

std::string joined(const std::vector<std::string>& words) {
  std::string text = words[0];
  for (size_t i = 1; i < words.size(); ++i) text += (i + 1 < words.size() ? ", " : " or ") + words[i];
  return text;
}

std::string word(at::ScalarType dtype) { return std::string(c10::getDtypeNames(dtype).first); }

std::string word(at::IntArrayRef shape) {
  std::ostringstream text;
  text << shape;
  return text.str();
}

template <class Items>
std::string words(const Items& items) {
  std::vector<std::string> all;
  for (const auto& item : items) all.push_back(word(item));
  return joined(all);
}

// The index of `text` in `choices`; raises if it is not there.
template <size_t kCount>
size_t choice(std::string_view op, const char* name, std::string_view text,
              const std::array<std::string_view, kCount>& choices) {
  for (size_t i = 0; i < kCount; ++i)
    if (choices[i] == text) return i;
  std::vector<std::string> quoted;
  for (const auto& one : choices) quoted.push_back("'" + std::string(one) + "'");
  TORCH_CHECK_VALUE(false, op, ": ", name, " must be one of ", joined(quoted), ", got '", text, "'");
}

void check_dtype(std::string_view op, const char* name, const at::Tensor& tensor, at::ScalarType expected,
                 at::ScalarType alternative) {
  const auto dtype = tensor.scalar_type();
  if (dtype == expected || dtype == alternative) return;
  std::vector<at::ScalarType> all = {expected};
  if (alternative != expected) all.push_back(alternative);
  TORCH_CHECK(false, op, ": ", name, " must have dtype ", words(all), ", got ", word(dtype));
}

[[noreturn]] void wrong_shape(std::string_view op, const char* name, const std::string& expected,
                              const at::Tensor& got) {
  TORCH_CHECK(false, op, ": ", name, " must have shape ", expected, ", got ", got.sizes());
}

std::vector<int64_t> joined(at::IntArrayRef rows, at::IntArrayRef more) {
  std::vector<int64_t> shape(rows.begin(), rows.end());
  shape.insert(shape.end(), more.begin(), more.end());
  return shape;
}

// Whether `shape` is `rows` followed by `more`.
bool is(at::IntArrayRef shape, at::IntArrayRef rows, at::IntArrayRef more) {
  return shape.size() == rows.size() + more.size() && shape.slice(0, rows.size()) == rows &&
         shape.slice(rows.size()) == more;
}

void check_shapes(std::string_view op, const Operands& o) {
  const auto& w = o.linear_weight;
  TORCH_CHECK(o.input.dim() >= 1, op, ": input must have at least 1 dimension, got shape []");
  const auto rows = o.input.sizes().slice(0, o.input.dim() - 1);
  const int64_t d = o.input.size(-1);
  if (w.dim() < 1 || w.dim() > 2 || w.size(-1) != d)
    wrong_shape(op, "linear_weight", "[out_features, " + std::to_string(d) + "] or [" + std::to_string(d) + "]", w);
  const at::IntArrayRef outputs = w.sizes().slice(0, w.dim() - 1);  // [K] or []
  check_target(op, rows, outputs, o.target);
  if (o.linear_bias) {
    const auto shape = o.linear_bias->sizes();
    if (!outputs.empty() && shape != outputs) wrong_shape(op, "linear_bias", word(outputs), *o.linear_bias);
    if (outputs.empty() && !shape.empty() && shape != at::IntArrayRef{1})
      wrong_shape(op, "linear_bias", "[] or [1]", *o.linear_bias);
  }
  if (o.weight) {
    const auto shape = o.weight->sizes();
    const bool one_a_row = !outputs.empty() && (is(shape, rows, {}) || is(shape, rows, {1}));
    if (!is(shape, rows, outputs) && !one_a_row) {
      std::vector<std::vector<int64_t>> shapes = {joined(rows, outputs)};
      if (!outputs.empty()) shapes.insert(shapes.end(), {joined(rows, {}), joined(rows, {1})});
      wrong_shape(op, "weight", words(shapes), *o.weight);
    }
  }
}

// The stride of a tensor's rows, with its leading dimensions flattened; nullopt if no single stride describes them.
std::optional<int64_t> row_stride(const at::Tensor& tensor, int64_t leading) {
  std::optional<int64_t> stride;
  int64_t expected = 0;
  for (int64_t i = leading - 1; i >= 0; --i) {
    if (tensor.size(i) == 1) continue;
    if (!stride) {
      stride = tensor.stride(i);
    } else if (tensor.stride(i) != expected) {
      return std::nullopt;
    }
    expected = tensor.stride(i) * tensor.size(i);
  }
  return stride.value_or(0);
}

// `tensor` as [n, columns], or [n, 1] without columns; copied if its strides do not allow it.
View view_of(const at::Tensor& tensor, bool has_columns, bool contiguous_columns, at::Tensor& copy) {
  const at::Tensor* source = &tensor;
  const int64_t leading = tensor.dim() - has_columns;
  std::optional<int64_t> stride = row_stride(tensor, leading);
  const bool columns_fit = !contiguous_columns || tensor.size(-1) <= 1 || tensor.stride(-1) == 1;
  if (!stride || !columns_fit) {
    copy = tensor.contiguous();
    source = &copy;
    stride = row_stride(copy, leading).value_or(0);  // an empty tensor's strides may be arbitrary
  }
  const int64_t col_stride = has_columns ? (contiguous_columns ? 1 : source->stride(-1)) : 0;
  return {source->const_data_ptr(), *stride, col_stride, dtype_of(*source)};
}

// The memory of a tensor as `count` rows of `length` contiguous bytes, `step` apart; other layouts as one row that
// spans them.
struct Extent {
  int64_t start, length, count, step;
};

Extent extent_of(const at::Tensor& t) {
  const int64_t size = int64_t(t.element_size()), start = reinterpret_cast<int64_t>(t.const_data_ptr());
  if (t.numel() == 0) return {start, 0, 1, 0};
  if ((t.dim() == 1 || t.dim() == 2) && !t.is_contiguous()) {
    const int64_t width = t.dim() == 2 ? t.size(1) : 1;
    if (t.stride(0) >= width && (width == 1 || t.stride(1) == 1))
      return {start, width * size, t.size(0), t.stride(0) * size};
  }
  int64_t last = 0;
  for (int64_t i = 0; i < t.dim(); ++i) last += (t.size(i) - 1) * t.stride(i);
  return {start, (last + 1) * size, 1, (last + 1) * size};
}

// Whether two extents share a byte. Comparing their ends is not enough: columns of one matrix interleave without
// overlapping.
bool overlapping(Extent a, Extent b) {
  if (a.length == 0 || b.length == 0 || a.count == 0 || b.count == 0) return false;
  if (a.start + (a.count - 1) * a.step + a.length <= b.start) return false;
  if (b.start + (b.count - 1) * b.step + b.length <= a.start) return false;
  if (a.count > b.count) std::swap(a, b);
  for (int64_t begin = a.start; begin < a.start + a.count * a.step; begin += a.step) {
    // Only the last row of b that starts at or before `begin`, and the next one, can overlap this row of a.
    const int64_t j = begin < b.start ? 0 : (begin - b.start) / b.step;
    for (int64_t i = j; i < std::min(j + 2, b.count); ++i) {
      const int64_t b_begin = b.start + i * b.step;
      if (begin < b_begin + b.length && b_begin < begin + a.length) return true;
    }
  }
  return false;
}

}  // namespace

void check_group(const char* op, int64_t index, int64_t row, int64_t groups) {
  TORCH_CHECK_INDEX(uint64_t(index) < uint64_t(groups), op, ": group must hold indices from 0 to ", groups - 1,
                    ", got ", index, " in row ", row);
}

void check_target(std::string_view op, at::IntArrayRef rows, at::IntArrayRef outputs, const at::Tensor& target) {
  if (is(target.sizes(), rows, outputs)) return;
  // A vector beside a column is the mistake that PyTorch broadcasts to a square matrix.
  const char* const cure = is(joined(rows, outputs), target.sizes(), {1}) ? "; pass target.unsqueeze(-1)" : "";
  TORCH_CHECK(false, op, ": target must have shape ", word(joined(rows, outputs)), ", got ", target.sizes(), cure);
}

std::string_view threshold_of(std::string_view loss) {
  for (size_t i = 0; i < kLossNames.size(); ++i)
    if (kLossNames[i] == loss && !kThresholds[i].name.empty()) return kThresholds[i].name;
  return "delta";
}

Dtype dtype_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble:
      return Dtype::float64;
    case at::kBFloat16:
      return Dtype::bfloat16;
    case at::kHalf:
      return Dtype::float16;
    default:
      return Dtype::float32;
  }
}

at::ScalarType scalar_type_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::float64:
      return at::kDouble;
    case Dtype::bfloat16:
      return at::kBFloat16;
    case Dtype::float16:
      return at::kHalf;
    default:
      return at::kFloat;
  }
}

Rows rows_of(const at::Tensor& tensor, at::Tensor& copy) {
  const bool fits = tensor.dim() == 0 || tensor.size(-1) <= 1 || tensor.stride(-1) == 1;
  if (!fits) copy = tensor.contiguous();
  const at::Tensor& source = fits ? tensor : copy;
  return {source.data_ptr(), source.dim() >= 2 ? source.stride(-2) : 0, dtype_of(source)};
}

Checked check_problem(std::string_view op, const Operands& o, const Objective& objective) {
  Checked checked;
  Problem& p = checked.problem;
  const double delta = objective.delta;
  const size_t number = choice(op, "loss", objective.loss, kLossNames);
  const Threshold& threshold = kThresholds[number];
  TORCH_CHECK_VALUE(threshold.is_valid(delta), op, ": ", threshold.name, " must be ", threshold.expected, ", got ",
                    delta);
  p.loss = effective_loss(Loss(number), delta);
  p.reduction = Reduction(choice(op, "reduction", objective.reduction, kReductions));
  p.delta = delta;

  const Named all[] = {{"input", &o.input},
                       {"linear_weight", &o.linear_weight},
                       {"target", &o.target},
                       {"linear_bias", o.linear_bias},
                       {"weight", o.weight}};
  for (const auto& [name, tensor] : all)
    TORCH_CHECK(!tensor || (tensor->layout() == at::kStrided && !tensor->is_nested()), op, ": ", name,
                " must be a dense tensor, got a sparse or nested one");

  const auto dtype = o.input.scalar_type();
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf, op,
              ": input must have dtype ", words(kDtypes), ", got ", word(dtype));
  const auto wide = dtype == at::kDouble ? at::kDouble : at::kFloat;
  check_dtype(op, "linear_weight", o.linear_weight, dtype, wide);
  check_dtype(op, "target", o.target, dtype, wide);
  const auto parameter = o.linear_weight.scalar_type();
  if (o.linear_bias) check_dtype(op, "linear_bias", *o.linear_bias, parameter, parameter);
  if (o.weight) check_dtype(op, "weight", *o.weight, dtype, o.target.scalar_type() == wide ? wide : parameter);

  check_shapes(op, o);
  for (const auto& [name, tensor] : all)
    TORCH_CHECK(!tensor || tensor->device() == o.input.device(), op, ": ", name, " must be on ", o.input.device(),
                ", got ", tensor->device());

  const bool has_k = o.linear_weight.dim() == 2;
  p.d = o.input.size(-1);
  p.k = has_k ? o.linear_weight.size(0) : 1;
  p.n = c10::multiply_integers(o.input.sizes().slice(0, o.input.dim() - 1));
  p.x = view_of(o.input, true, true, checked.copies[0]);
  p.w = view_of(o.linear_weight, true, true, checked.copies[1]);
  p.y = view_of(o.target, has_k, false, checked.copies[2]);
  if (o.linear_bias) {
    const int64_t stride = o.linear_bias->dim() == 1 ? o.linear_bias->stride(0) : 0;
    p.b = {o.linear_bias->const_data_ptr(), 0, stride, dtype_of(*o.linear_bias)};
  }
  if (o.weight) {
    const bool has_columns = o.weight->dim() == o.input.dim();
    p.v = view_of(*o.weight, has_columns, false, checked.copies[4]);
    if (has_columns && o.weight->size(-1) == 1) p.v.col_stride = 0;
  }
  return checked;
}

FirstProblem first_problem(std::string_view op, const Operands& o, bool by_offsets) {
  const at::Tensor& w = o.linear_weight;
  TORCH_CHECK(w.dim() == 2 || w.dim() == 3, op,
              ": linear_weight must have shape [problems, out_features, in_features] or [problems, in_features], got ",
              w.sizes());
  TORCH_CHECK(o.input.dim() == 2 || (o.input.dim() == 3 && !by_offsets), op, ": input must have shape ",
              by_offsets ? "" : "[problems, rows, in_features] or ", "[rows, in_features]",
              by_offsets ? " with offsets" : "", ", got ", o.input.sizes());
  const bool shared_input = o.input.dim() == 2;
  const bool shared_target = by_offsets || (shared_input && o.target.dim() == w.dim() - 1);
  const auto first = [&](const char* name, const at::Tensor& tensor, bool shared, int64_t& stride) {
    if (shared) return tensor;
    TORCH_CHECK(tensor.dim() > 0 && tensor.size(0) == w.size(0), op, ": ", name, " must have shape [", w.size(0),
                ", …], for each problem of linear_weight, got ", tensor.sizes());
    stride = tensor.stride(0) * int64_t(tensor.element_size());
    return w.size(0) > 0 ? tensor.select(0, 0) : tensor.new_empty(tensor.sizes().slice(1));
  };
  const bool by_rows = o.input.size(-1) <= 1 || o.input.stride(-1) == 1;
  FirstProblem p;
  int64_t unused;  // parameters may be copied, too, but later
  p.input = first("input", by_rows ? o.input : o.input.contiguous(), shared_input, p.strides.x);
  p.target = first("target", o.target, shared_target, p.strides.y);
  p.linear_weight = first("linear_weight", w, false, unused);
  if (o.linear_bias) p.linear_bias = first("linear_bias", *o.linear_bias, false, unused);
  if (o.weight) p.weight = first("weight", *o.weight, shared_target, p.strides.v);
  return p;
}

namespace {

// The tensors of a step with their names: first those that it writes, then those that it only reads.
struct StepTensors {
  StepTensors(const Operands& o, const SgdArguments& sgd, std::initializer_list<Named> also_read) {
    const std::array<const at::Tensor*, 2> parameters = {&o.linear_weight, o.linear_bias};
    for (size_t i = 0; i < 2; ++i)
      if (!sgd.frozen[i]) add(kParameters[i], parameters[i]);
    for (size_t i = 0; i < 2; ++i)
      if (!sgd.frozen[i] && parameters[i] && sgd.rule.momentum != 0) add(kBuffers[i], sgd.momentum_buffers[i]);
    written = tensors.size();
    for (size_t i = 0; i < 2; ++i)
      if (sgd.frozen[i]) add(kParameters[i], parameters[i]);
    add("input", &o.input);
    add("target", &o.target);
    add("weight", o.weight);
    add("lr", sgd.lr_tensor);
    add("momentum", sgd.momentum_tensor);
    add("weight_decay", sgd.weight_decay_tensor);
    for (const auto& [name, tensor] : also_read) add(name, tensor);
  }

  // A written tensor and one that overlaps it.
  std::optional<std::pair<const char*, const char*>> overlap() const {
    c10::SmallVector<Extent, 12> extents;
    for (const at::Tensor* tensor : tensors) extents.push_back(extent_of(*tensor));
    for (size_t i = 0; i < written; ++i) {
      const at::Tensor& tensor = *tensors[i];
      for (int64_t dim = 0; dim < tensor.dim(); ++dim)
        if (tensor.stride(dim) == 0 && tensor.size(dim) > 1 && tensor.numel() > 0) return std::pair(names[i], "itself");
      for (size_t j = i + 1; j < tensors.size(); ++j)
        if (overlapping(extents[i], extents[j])) return std::pair(names[i], names[j]);
    }
    return std::nullopt;
  }

  void add(const char* name, const at::Tensor* tensor) {
    if (!tensor) return;
    names.push_back(name);
    tensors.push_back(tensor);
  }

  c10::SmallVector<const char*, 12> names;
  c10::SmallVector<const at::Tensor*, 12> tensors;
  size_t written = 0;
};

}  // namespace

void check_rule(std::string_view op, const Sgd& rule, bool has_lr) {
  TORCH_CHECK_VALUE(!has_lr || rule.lr >= 0, op, ": lr must be >= 0, got ", rule.lr);
  TORCH_CHECK_VALUE(rule.momentum >= 0, op, ": momentum must be >= 0, got ", rule.momentum);
  TORCH_CHECK_VALUE(rule.weight_decay >= 0, op, ": weight_decay must be >= 0, got ", rule.weight_decay);
  TORCH_CHECK_VALUE(!rule.nesterov || (rule.momentum > 0 && rule.dampening == 0), op,
                    ": nesterov must be False unless momentum > 0 and dampening == 0, got momentum ", rule.momentum,
                    " and dampening ", rule.dampening);
  TORCH_CHECK_VALUE(!std::isnan(rule.dampening), op, ": dampening must be a number, got nan");
}

void check_sgd(std::string_view op, const Operands& o, const Objective& objective, const SgdArguments& sgd,
               std::initializer_list<Named> also_read) {
  TORCH_CHECK_VALUE(objective.reduction != "none", op, ": reduction must be 'mean' or 'sum', got 'none'");
  const Sgd& rule = sgd.rule;
  for (const auto& [name, tensor] : {Named{"lr", sgd.lr_tensor}, Named{"momentum", sgd.momentum_tensor},
                                     Named{"weight_decay", sgd.weight_decay_tensor}}) {
    if (!tensor) continue;
    if (sgd.steps == 1) {
      TORCH_CHECK_VALUE(tensor->numel() == 1, op, ": ", name, " must be a float or a 1-element tensor, got shape ",
                        tensor->sizes());
    } else {
      TORCH_CHECK_VALUE(tensor->numel() == 1 || (tensor->dim() == 1 && tensor->numel() == sgd.steps), op, ": ", name,
                        " must be a float, a 1-element tensor or one of shape [", sgd.steps, "], got shape ",
                        tensor->sizes());
    }
    check_dtype(op, name, *tensor, at::kFloat, at::kDouble);
    TORCH_CHECK(tensor->device() == o.input.device() || tensor->is_cpu(), op, ": ", name, " must be on ",
                o.input.device(), " or cpu, got ", tensor->device());
  }
  check_rule(op, rule, !sgd.lr_tensor);

  const auto check_buffer = [&](const char* name, const at::Tensor& parameter, const at::Tensor* buffer) {
    TORCH_CHECK_VALUE(buffer, op, ": ", name, " must be a tensor when momentum != 0, got None");
    check_dtype(op, name, *buffer, parameter.scalar_type(), parameter.scalar_type());
    if (buffer->sizes() != parameter.sizes()) wrong_shape(op, name, word(parameter.sizes()), *buffer);
    TORCH_CHECK(buffer->device() == o.input.device(), op, ": ", name, " must be on ", o.input.device(), ", got ",
                buffer->device());
  };
  const std::array<const at::Tensor*, 2> parameters = {&o.linear_weight, o.linear_bias};
  for (size_t i = 0; i < 2; ++i)
    if (rule.momentum != 0 && parameters[i] && !sgd.frozen[i])
      check_buffer(kBuffers[i], *parameters[i], sgd.momentum_buffers[i]);

  if (const auto found = StepTensors(o, sgd, also_read).overlap()) {
    const std::string_view other = found->second;
    TORCH_CHECK(false, op, ": ", found->first, " must not overlap ", other, " in memory",
                other == "itself" ? " (is it expanded?); clone it" : "; clone one of them");
  }
}

std::optional<std::pair<const char*, const char*>> find_overlap(const Operands& operands, const SgdArguments& sgd) {
  return StepTensors(operands, sgd, {}).overlap();
}

namespace {

// Raises unless entries [first, last) of an order are indices of rows.
void check_indices(std::string_view op, const at::Tensor& order, int64_t first, int64_t last, int64_t rows) {
  const int64_t* const index = order.const_data_ptr<int64_t>();
  bool in_range = true;
  for (int64_t i = first; i < last; ++i) in_range &= uint64_t(index[i]) < uint64_t(rows);
  if (in_range) return;
  while (uint64_t(index[first]) < uint64_t(rows)) ++first;
  TORCH_CHECK_INDEX(false, op, ": order must hold indices from 0 to ", rows - 1, ", got ", index[first]);
}

}  // namespace

Run check_run(std::string_view op, const RunArguments& a, int64_t rows, c10::Device device) {
  TORCH_CHECK_VALUE(a.batch_size >= 1, op, ": batch_size must be >= 1, got ", a.batch_size);
  TORCH_CHECK_VALUE(a.epochs >= 0, op, ": epochs must be >= 0, got ", a.epochs);
  Run run;
  run.rows = rows;
  run.batch_size = a.batch_size;
  if (a.order) {
    const at::Tensor& order = *a.order;
    check_dtype(op, "order", order, at::kLong, at::kLong);
    TORCH_CHECK(order.dim() == 1 || (order.dim() == 2 && order.size(0) == a.epochs), op,
                ": order must have shape [rows] or [", a.epochs, ", rows], got ", order.sizes());
    TORCH_CHECK(order.is_contiguous(), op, ": order must be contiguous, got strides ", order.strides(),
                "; pass order.contiguous()");
    TORCH_CHECK(order.device() == device || (order.is_cpu() && !device.is_cpu()), op, ": order must be on ", device,
                device.is_cpu() ? "" : " or cpu", ", got ", order.device());
    run.rows = order.size(-1);
    run.order_stride = order.dim() == 2 ? run.rows : 0;
  }
  run.epoch_steps = steps_of(run.rows, a.batch_size, a.drop_last);
  run.begin = a.begin;
  run.end = a.end;
  const int64_t steps = run.epoch_steps * a.epochs;
  TORCH_CHECK_VALUE(0 <= a.begin && a.begin <= a.end && a.end <= steps, op,
                    ": begin and end must satisfy 0 <= begin <= end <= ", steps, ", got ", a.begin, " and ", a.end);
  if (!a.order || !a.order->is_cpu() || a.begin == a.end) return run;

  const bool all = a.begin == 0 || run.order_stride == 0;
  const int64_t first = all ? 0 : a.begin / run.epoch_steps * run.rows;
  const int64_t last = all ? a.order->numel() : ((a.end - 1) / run.epoch_steps + 1) * run.rows;
  check_indices(op, *a.order, first, last, rows);
  return run;
}

Many check_many(std::string_view op, const ManyArguments& a, const Run& run, int64_t problems, int64_t rows) {
  TORCH_CHECK_VALUE(0 <= a.begin && a.begin <= a.end && a.end <= problems, op,
                    ": begin and end must satisfy 0 <= begin <= end <= ", problems, ", got ", a.begin, " and ", a.end);
  Many many;
  many.begin = a.begin;
  many.end = a.end;
  many.epochs = a.run.epochs;
  many.drop_last = a.run.drop_last;
  if (a.offsets) {
    const at::Tensor& offsets = *a.offsets;
    check_dtype(op, "offsets", offsets, at::kLong, at::kLong);
    TORCH_CHECK(offsets.is_cpu(), op, ": offsets must be on cpu, got ", offsets.device());
    if (offsets.sizes() != at::IntArrayRef{problems + 1}) wrong_shape(op, "offsets", word({problems + 1}), offsets);
    TORCH_CHECK(offsets.is_contiguous(), op, ": offsets must be contiguous, got strides ", offsets.strides());
    many.offsets = offsets.const_data_ptr<int64_t>();
    const int64_t first = a.begin, last = a.begin == 0 ? problems : a.end;
    for (int64_t i = first, before = 0; i <= last; before = many.offsets[i++])
      TORCH_CHECK_VALUE(before <= many.offsets[i] && many.offsets[i] <= run.rows, op,
                        ": offsets must rise from 0 or more to at most ", run.rows, ", got ", many.offsets[i],
                        i > first ? " after " + std::to_string(before) : "");
  }
  if (a.run.order && a.run.order->is_cpu() && run.rows > 0) {
    const bool some = many.offsets && a.begin > 0;
    for (int64_t epoch = 0; epoch < a.run.order->numel() / run.rows; ++epoch)
      check_indices(op, *a.run.order, epoch * run.rows + (some ? many.offsets[a.begin] : 0),
                    epoch * run.rows + (some ? many.offsets[a.end] : run.rows), rows);
  }
  return many;
}

}  // namespace linreg::torch_ops

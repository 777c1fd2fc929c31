// The margin tracker for Python: torch.classes.kktorch.MarginTracker, which kktorch.svm wraps.
#include <torch/custom_class.h>

#include "ops/svm/margin_tracker.h"

namespace kktorch {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

struct MarginTrackerClass : torch::CustomClassHolder {
  MarginTrackerClass(Tensor x, Tensor z, Tensor row_ptr, OptionalTensor tok, OptionalTensor alpha,
                     OptionalTensor selected, bool optimal, bool nuclear, int64_t solve_after,
                     double solve_seconds, double kappa_max)
      : tracker({.x = std::move(x),
                 .z = std::move(z),
                 .row_ptr = std::move(row_ptr),
                 .tok = std::move(tok),
                 .alpha = std::move(alpha),
                 .selected = std::move(selected),
                 .optimal = optimal,
                 .nuclear = nuclear,
                 .solve_after = solve_after,
                 .solve_seconds = solve_seconds,
                 .kappa_max = kappa_max}) {}

  MarginTracker tracker;
};

std::vector<std::string> field_names() {
  std::vector<std::string> names;
  for (const auto& [name, value] : MarginRecord{}.fields()) names.push_back(name);
  return names;
}

/// The fields in the order of field_names(), then alpha, margin and the hash.
std::tuple<std::vector<double>, Tensor, Tensor, int64_t> step(
    const c10::intrusive_ptr<MarginTrackerClass>& self, OptionalTensor W, OptionalTensor K,
    OptionalTensor Q, OptionalTensor dlogits, OptionalTensor queries, OptionalTensor score,
    double scale, double loss, double loss_star, std::optional<double> omega) {
  const auto record = self->tracker.step({.W = std::move(W),
                                          .K = std::move(K),
                                          .Q = std::move(Q),
                                          .dlogits = std::move(dlogits),
                                          .queries = std::move(queries),
                                          .score = std::move(score),
                                          .scale = scale,
                                          .loss = loss,
                                          .loss_star = loss_star,
                                          .omega = omega});
  std::vector<double> values;
  for (const auto& [name, value] : record.fields()) values.push_back(value);
  return {values, record.alpha, record.margin, static_cast<int64_t>(record.hash)};
}

c10::Dict<std::string, Tensor> state(const c10::intrusive_ptr<MarginTrackerClass>& self) {
  c10::Dict<std::string, Tensor> result;
  for (const auto& [name, value] : self->tracker.state()) result.insert(name, value.clone());
  return result;
}

void load_state(const c10::intrusive_ptr<MarginTrackerClass>& self,
                c10::Dict<std::string, Tensor> state) {
  std::map<std::string, Tensor> tensors;
  for (const auto& entry : state) tensors[entry.key()] = entry.value();
  self->tracker.load_state(tensors);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(kktorch, m) {
  m.class_<MarginTrackerClass>("MarginTracker")
      .def(torch::init<Tensor, Tensor, Tensor, OptionalTensor, OptionalTensor, OptionalTensor, bool,
                       bool, int64_t, double, double>())
      .def_static("field_names", &field_names)
      .def("step", &step)
      .def("path",
           [](const c10::intrusive_ptr<MarginTrackerClass>& self) {
             return self->tracker.path().clone();
           })
      .def("state", &state)
      .def("load_state", &load_state);
}

}  // namespace kktorch

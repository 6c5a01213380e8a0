// linear_sum_assignment(cost_matrix, maximize=False) for NumPy: SciPy's conversions, results and
// exceptions. No torch in the path, and the GIL is released while a problem is solved.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels.h"

namespace py = pybind11;

namespace detr_fast {
namespace {

constexpr const char* kDoc = R"(linear_sum_assignment(cost_matrix, maximize=False)

Gives every row of the smaller side a partner of its own at the smallest total cost.

Takes the place of scipy.optimize.linear_sum_assignment: same arguments, results and exceptions. The
total cost is the same; where several assignments share it, the one returned can be another
(detr_fast.linear_assignment says which). float32 and float64 matrices are read where they are.

Args:
    cost_matrix: 2-D array-like of bool, integer or floating entries. +inf forbids a pair (-inf
        when maximizing).
    maximize: whether to look for the largest total instead.

Returns:
    (row_ind, col_ind): int64 arrays of length min(rows, columns); row_ind ascends.

Raises:
    ValueError: the input is not two-dimensional, has NaN or -inf entries (+inf when maximizing), or
        its forbidden pairs leave no full assignment.
    TypeError: the entries cannot be cast safely to float64.
)";

// The input as a float32 or float64 array of aligned entries in native byte order.
py::array as_matrix(const py::object& input) {
  constexpr int kAligned = py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  if (py::isinstance<py::array>(input)) {
    auto array = py::reinterpret_borrow<py::array>(input);
    const char kind = array.dtype().kind();
    const bool usable = kind == 'f' && (array.itemsize() == 4 || array.itemsize() == 8);
    const char order = array.dtype().byteorder();
    if (usable && (order == '=' || order == '|') && (array.flags() & kAligned)) return array;
  }
  auto& api = py::detail::npy_api::get();
  PyObject* converted = api.PyArray_FromAny_(
      input.ptr(), py::dtype::of<double>().release().ptr(), 0, 0, kAligned, nullptr);
  if (converted == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::array>(converted);
}

template <class Cost>
CostMatrix<Cost> view(const py::array& array, std::vector<Cost>& copy) {
  const auto rows = static_cast<int>(array.shape(0)), columns = static_cast<int>(array.shape(1));
  constexpr py::ssize_t kSize = sizeof(Cost);
  const auto* data = static_cast<const char*>(array.data());
  if (array.strides(0) % kSize == 0 && array.strides(1) % kSize == 0) {
    return {reinterpret_cast<const Cost*>(data), array.strides(0) / kSize,
            array.strides(1) / kSize, rows, columns};
  }
  // Fields of a record may lie between entries.
  copy.resize(static_cast<size_t>(rows) * columns);
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < columns; ++j) {
      std::memcpy(&copy[static_cast<size_t>(i) * columns + j],
                  data + i * array.strides(0) + j * array.strides(1), sizeof(Cost));
    }
  }
  return {copy.data(), columns, 1, rows, columns};
}

template <class Cost>
LapStatus assign(const CostMatrix<Cost>& cost, bool maximize, int64_t* columns_of_rows) {
  const CpuKernels& kernels = cpu_kernels();
  Workspace workspace;
  CostMatrix<Cost> matrix = cost;
  std::vector<Cost> negated;
  if (maximize) {
    negated.resize(static_cast<size_t>(cost.rows) * cost.columns);
    for (int i = 0; i < cost.rows; ++i) {
      for (int j = 0; j < cost.columns; ++j) {
        negated[static_cast<size_t>(i) * cost.columns + j] =
            -cost.data[i * cost.row_stride + j * cost.column_stride];
      }
    }
    matrix = {negated.data(), cost.columns, 1, cost.rows, cost.columns};
  }
  if constexpr (sizeof(Cost) == sizeof(float)) {
    return kernels.assign_float(matrix, columns_of_rows, workspace);
  } else {
    return kernels.assign_double(matrix, columns_of_rows, workspace);
  }
}

template <class Cost>
LapStatus assign(const py::array& array, bool maximize, std::vector<int64_t>& columns_of_rows) {
  std::vector<Cost> copy;
  const CostMatrix<Cost> cost = view(array, copy);
  const py::gil_scoped_release released;
  return assign(cost, maximize, columns_of_rows.data());
}

py::tuple linear_sum_assignment(const py::object& cost_matrix, const py::object& maximize) {
  const py::array array = as_matrix(cost_matrix);
  if (array.ndim() != 2) {
    throw py::value_error("expected a matrix (2-D array), got a " + std::to_string(array.ndim()) +
                          " array");
  }
  const int truth = PyObject_IsTrue(maximize.ptr());
  if (truth < 0) throw py::error_already_set();
  if (std::max(array.shape(0), array.shape(1)) >= (1 << 30)) {
    throw py::value_error("the cost matrix has 2**30 or more rows or columns");
  }
  std::vector<int64_t> columns_of_rows(array.shape(0));
  const LapStatus status = array.itemsize() == sizeof(float)
                               ? assign<float>(array, truth, columns_of_rows)
                               : assign<double>(array, truth, columns_of_rows);
  if (status == LapStatus::kInvalid) {
    throw py::value_error("matrix contains invalid numeric entries");
  }
  if (status == LapStatus::kInfeasible) throw py::value_error("cost matrix is infeasible");

  const py::ssize_t length = std::min(array.shape(0), array.shape(1));
  py::array_t<int64_t> row_ind(length), col_ind(length);
  int64_t* rows = row_ind.mutable_data();
  int64_t* columns = col_ind.mutable_data();
  for (size_t i = 0; i < columns_of_rows.size(); ++i) {
    if (columns_of_rows[i] < 0) continue;
    *rows++ = static_cast<int64_t>(i);
    *columns++ = columns_of_rows[i];
  }
  return py::make_tuple(row_ind, col_ind);
}

}  // namespace
}  // namespace detr_fast

void bind_linear_sum_assignment(py::module_& module) {
  module.def("linear_sum_assignment", &detr_fast::linear_sum_assignment, py::arg("cost_matrix"),
             py::arg("maximize") = false, detr_fast::kDoc);
}

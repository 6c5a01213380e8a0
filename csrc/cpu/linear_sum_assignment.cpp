// linear_sum_assignment(cost_matrix, maximize=False) for NumPy: SciPy's conversions, results and
// exceptions. No torch in the path, and the GIL is released while a large problem is solved.
//
// A small problem is solved in less time than pybind11 takes to call a function, so the function is
// one of CPython's own kind and reaches into arrays directly.

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
--

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

constexpr int kFloat = py::detail::npy_api::NPY_FLOAT_, kDouble = py::detail::npy_api::NPY_DOUBLE_;

int type_of(const py::handle& array) {
  return py::detail::array_descriptor_proxy(py::detail::array_proxy(array.ptr())->descr)->type_num;
}

// The input as a float32 or float64 array of aligned entries in native byte order.
py::object as_matrix(const py::handle& input) {
  constexpr int kAligned = py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  auto& api = py::detail::npy_api::get();
  if (api.PyArray_Check_(input.ptr())) {
    const auto* array = py::detail::array_proxy(input.ptr());
    const int type = type_of(input);
    const char order = py::detail::array_descriptor_proxy(array->descr)->byteorder;
    if ((type == kFloat || type == kDouble) && order == '=' && (array->flags & kAligned)) {
      return py::reinterpret_borrow<py::object>(input);
    }
  }
  PyObject* converted = api.PyArray_FromAny_(
      input.ptr(), py::dtype::of<double>().release().ptr(), 0, 0, kAligned, nullptr);
  if (converted == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(converted);
}

py::object new_indices(py::ssize_t length) {
  auto& api = py::detail::npy_api::get();
  const Py_intptr_t shape[1] = {length};
  PyObject* array = api.PyArray_NewFromDescr_(
      api.PyArray_Type_, api.PyArray_DescrFromType_(py::detail::npy_api::NPY_INT64_), 1, shape,
      nullptr, nullptr, 0, nullptr);
  if (array == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(array);
}

int64_t* entries(const py::object& indices) {
  return reinterpret_cast<int64_t*>(py::detail::array_proxy(indices.ptr())->data);
}

template <class Cost>
CostMatrix<Cost> view(const py::object& matrix, std::vector<Cost>& copy) {
  const auto* array = py::detail::array_proxy(matrix.ptr());
  const auto rows = static_cast<int>(array->dimensions[0]);
  const auto columns = static_cast<int>(array->dimensions[1]);
  const py::ssize_t row_bytes = array->strides[0], column_bytes = array->strides[1];
  constexpr py::ssize_t kSize = sizeof(Cost);
  if (row_bytes % kSize == 0 && column_bytes % kSize == 0) {
    return {reinterpret_cast<const Cost*>(array->data), row_bytes / kSize, column_bytes / kSize,
            rows, columns};
  }
  // Fields of a record may lie between entries.
  copy.resize(static_cast<size_t>(rows) * columns);
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < columns; ++j) {
      std::memcpy(&copy[static_cast<size_t>(i) * columns + j],
                  array->data + i * row_bytes + j * column_bytes, sizeof(Cost));
    }
  }
  return {copy.data(), columns, 1, rows, columns};
}

template <class Cost>
LapStatus assign(const CostMatrix<Cost>& cost, bool maximize, int64_t* columns_of_rows,
                 Workspace& workspace) {
  const CpuKernels& kernels = cpu_kernels();
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
LapStatus assign(const py::object& matrix, bool maximize, int64_t* columns_of_rows) {
  constexpr int64_t kSmall = 1 << 10;
  std::vector<Cost> copy;
  const CostMatrix<Cost> cost = view(matrix, copy);
  if (static_cast<int64_t>(cost.rows) * cost.columns <= kSmall) {
    // Memory that is kept, and the GIL: to give either back would take as long as the problem.
    static thread_local Workspace kept;
    return assign(cost, maximize, columns_of_rows, kept);
  }
  const py::gil_scoped_release released;
  Workspace workspace;
  return assign(cost, maximize, columns_of_rows, workspace);
}

py::tuple solve(const py::handle& cost_matrix, const py::handle& maximize) {
  const py::object matrix = as_matrix(cost_matrix);
  const auto* array = py::detail::array_proxy(matrix.ptr());
  if (array->nd != 2) {
    throw py::value_error("expected a matrix (2-D array), got a " + std::to_string(array->nd) +
                          " array");
  }
  const int truth = PyObject_IsTrue(maximize.ptr());
  if (truth < 0) throw py::error_already_set();
  const py::ssize_t rows = array->dimensions[0], columns = array->dimensions[1];
  if (std::max(rows, columns) >= (1 << 30)) {
    throw py::value_error("the cost matrix has 2**30 or more rows or columns");
  }
  const py::object row_ind = new_indices(std::min(rows, columns));
  const py::object col_ind = new_indices(std::min(rows, columns));
  // Where every row gets a column the answer is col_ind itself.
  std::vector<int64_t> with_gaps(rows > columns ? rows : 0);
  int64_t* columns_of_rows = rows > columns ? with_gaps.data() : entries(col_ind);
  const LapStatus status = type_of(matrix) == kFloat
                               ? assign<float>(matrix, truth, columns_of_rows)
                               : assign<double>(matrix, truth, columns_of_rows);
  if (status == LapStatus::kInvalid) {
    throw py::value_error("matrix contains invalid numeric entries");
  }
  if (status == LapStatus::kInfeasible) throw py::value_error("cost matrix is infeasible");

  int64_t* row = entries(row_ind);
  int64_t* column = entries(col_ind);
  for (py::ssize_t i = 0; i < rows; ++i) {
    if (columns_of_rows[i] < 0) continue;
    *row++ = i;
    *column++ = columns_of_rows[i];
  }
  return py::make_tuple(row_ind, col_ind);
}

// The arguments by their names, as CPython passes them to a function without a tuple.
py::tuple call(PyObject* const* arguments, Py_ssize_t count, PyObject* names) {
  constexpr const char* kNames[] = {"cost_matrix", "maximize"};
  PyObject* values[] = {nullptr, Py_False};
  if (count > 2) {
    throw py::type_error("linear_sum_assignment() takes at most 2 arguments (" +
                         std::to_string(count) + " given)");
  }
  for (Py_ssize_t k = 0; k < count; ++k) values[k] = arguments[k];
  const Py_ssize_t named = names == nullptr ? 0 : PyTuple_GET_SIZE(names);
  for (Py_ssize_t k = 0; k < named; ++k) {
    PyObject* name = PyTuple_GET_ITEM(names, k);
    int place = 0;
    while (place < 2 && PyUnicode_CompareWithASCIIString(name, kNames[place]) != 0) ++place;
    if (place == 2 || place < count) {
      throw py::type_error(std::string("linear_sum_assignment() got ") +
                           (place == 2 ? "an unexpected" : "a repeated") + " argument '" +
                           PyUnicode_AsUTF8(name) + "'");
    }
    values[place] = arguments[count + k];
  }
  if (values[0] == nullptr) {
    throw py::type_error("linear_sum_assignment() misses the argument 'cost_matrix'");
  }
  return solve(values[0], values[1]);
}

PyObject* linear_sum_assignment(PyObject*, PyObject* const* arguments, Py_ssize_t count,
                                PyObject* names) {
  try {
    return call(arguments, count, names).release().ptr();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const py::builtin_exception& error) {
    error.set_error();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  }
  return nullptr;
}

PyMethodDef kMethod = {"linear_sum_assignment",
                       reinterpret_cast<PyCFunction>(
                           reinterpret_cast<void (*)()>(linear_sum_assignment)),
                       METH_FASTCALL | METH_KEYWORDS, kDoc};

}  // namespace
}  // namespace detr_fast

void bind_linear_sum_assignment(py::module_& module) {
  const auto name = py::reinterpret_borrow<py::object>(module.attr("__name__"));
  module.add_object("linear_sum_assignment",
                    py::reinterpret_steal<py::object>(PyCFunction_NewEx(
                        &detr_fast::kMethod, nullptr, name.ptr())));
}

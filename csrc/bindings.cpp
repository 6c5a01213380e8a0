// The module detr_fast._C: what it was built with, the NumPy entry of the solver, and the memory of
// outputs. Operations on tensors are not here: each file of cpu/ and cuda/ registers its own with
// torch's dispatcher.

#include <string>
#include <vector>

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/version.h>

#include "cpu/kernels.h"

void bind_linear_sum_assignment(pybind11::module_& module);
void bind_output_memory(pybind11::module_& module);

namespace {

std::string compiler() {
#if defined(__clang__)
  return std::string("clang ") + __clang_version__;
#elif defined(__GNUC__)
  return std::string("gcc ") + __VERSION__;
#else
  return "unknown";
#endif
}

// The names of torch's dtypes that attention and convolution have kernels for on this CPU.
std::vector<std::string> inference_dtypes() {
  std::vector<std::string> names;
  if (detr_fast::cpu_uses_avx512()) names.push_back("float32");
  if (detr_fast::cpu_uses_avx512bf16()) names.push_back("bfloat16");
  return names;
}

pybind11::dict build_info() {
  using pybind11::literals::operator""_a;
  return pybind11::dict(
      "compiler"_a = compiler(),
      "cxx_standard"_a = static_cast<long>(__cplusplus),
      "torch"_a = DETR_FAST_TORCH_VERSION,
      "cpu_capability"_a = detr_fast::cpu_kernels().capability,
      "cpu_inference_dtypes"_a = inference_dtypes(),
#ifdef _OPENMP
      "openmp"_a = true,
#else
      "openmp"_a = false,
#endif
#ifdef DETR_FAST_CUDA_ARCH_LIST
      "cuda_kernels"_a = true,
      "cuda_arch_list"_a = DETR_FAST_CUDA_ARCH_LIST
#else
      "cuda_kernels"_a = false,
      "cuda_arch_list"_a = pybind11::none()
#endif
  );
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.doc() = "Compiled kernels of detr_fast; loading it registers them with torch.";
  module.def("build_info", &build_info, "What this module was compiled with, as a dict.");
  bind_linear_sum_assignment(module);
  bind_output_memory(module);
}

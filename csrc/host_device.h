// HOST_DEVICE marks functions that nvcc compiles for the device and a host compiler for the host.
// What nvcc compiles for the host calls none of them. UNROLL goes before a loop whose counter is to
// become constants, so that the arrays it indexes are registers on a GPU.

#pragma once

#ifdef __CUDACC__
#define HOST_DEVICE __device__
#define UNROLL _Pragma("unroll")
#else
#define HOST_DEVICE
#define UNROLL
#endif

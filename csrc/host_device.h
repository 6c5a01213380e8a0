// HOST_DEVICE marks functions that nvcc compiles for both sides and a host compiler for its own.

#pragma once

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__
#else
#define HOST_DEVICE
#endif

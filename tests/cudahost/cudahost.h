/* cudahost.h: stands in front of every .cu file that the host compiler compiles for the tests; CUDA's language as far as
 * kernels/cuda speaks it. The runtime calls come from NVIDIA's own headers and are defined in runtime.cpp.
 *
 * A kernel's threads are fibers. One block runs at a time, blocks and threads in an order drawn from CUDAHOST_SEED; a
 * thread runs until a barrier or a warp operation, so what is read without a barrier is, in some order, not yet written.
 * What each build finds is told in README.md beside this file. */
#ifndef CUDAHOST_H
#define CUDAHOST_H

#ifdef __CUDACC__
#error "cudahost.h is for the host compiler"
#endif

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <tuple>
#include <type_traits>

/* Sanitizers know where an ordinary variable ends; otherwise shared memory is kept together, to be filled with NaN. */
#undef __shared__
#if defined(__SANITIZE_ADDRESS__)
#define __shared__ static
#else
#define __shared__ static __attribute__((section("cudahost_shared"), used))
#endif
#undef __global__
#undef __device__
#undef __host__
#undef __forceinline__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define CUDAHOST_UNWATCHED __attribute__((noinline, no_sanitize("thread")))

namespace cudahost {

struct Thread {
    uint3 index;
    int number, lane, warp;
};
extern Thread *self;
extern uint3 block_index;
extern dim3 block_size, grid_size;

struct Here {
    uint3 thread, block;
    dim3 block_size, grid_size;
};
Here here();
int lane();

struct Site {
    const char *what, *file;
    int line;
};
#define CUDAHOST_HERE(what)                                                                                            \
    cudahost::Site {                                                                                                   \
        what, __FILE__, __LINE__                                                                                       \
    }

enum Vote { COUNT, ALL, ANY };
int barrier(Site site, int predicate, Vote vote);
void warp_exchange(uint64_t out[32], unsigned mask, uint64_t value, Site site);
void *dynamic_shared();
void atomic_access(void *address, size_t bytes);
void kernel_pointer(Site site, int argument, const void *pointer);
void enqueue_kernel(Site site, void (*call)(const void *arguments), std::shared_ptr<const void> arguments,
                    size_t argument_bytes, const void *kernel, dim3 grid, dim3 block, size_t shared_bytes,
                    cudaStream_t stream);

template <class... P>
void launch(Site site, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
            P... arguments) {
    struct Call {
        void (*kernel)(P...);
        std::tuple<P...> arguments;
    };
    int number = 0;
    auto check = [&](const auto &argument) {
        if constexpr (std::is_pointer_v<std::decay_t<decltype(argument)>>)
            kernel_pointer(site, number, (const void *)argument);
        number++;
    };
    (check(arguments), ...);
    auto call = std::make_shared<const Call>(Call{kernel, {arguments...}});
    enqueue_kernel(
        site,
        [](const void *memory) {
            const Call *c = static_cast<const Call *>(memory);
            std::apply(c->kernel, c->arguments);
        },
        call, sizeof(Call), reinterpret_cast<const void *>(kernel), grid, block, shared_bytes, stream);
}

enum Shuffle { FROM, UP, DOWN, XOR };
template <class T> T shuffle(Site site, Shuffle kind, unsigned mask, T value, int by, int width = 32) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    uint64_t in = 0, all[32];
    memcpy(&in, &value, sizeof value);
    warp_exchange(all, mask, in, site);
    const int lane = cudahost::lane(), first = lane & ~(width - 1);
    int from = kind == FROM   ? first + (by & (width - 1))
               : kind == UP   ? lane - by
               : kind == DOWN ? lane + by
                              : lane ^ by;
    if (from < first || from >= first + width)
        from = lane;
    memcpy(&value, &all[from], sizeof value);
    return value;
}

inline unsigned ballot(unsigned mask, bool predicate, Site site) {
    uint64_t all[32];
    warp_exchange(all, mask, predicate, site);
    unsigned bits = 0;
    for (int i = 0; i < 32; i++)
        bits |= (unsigned)all[i] << i;
    return bits;
}

/* One host thread runs all: an atomic is an ordinary update that the race detector is told of. */
template <class T, class F> CUDAHOST_UNWATCHED T atomic(T *address, F change) {
    atomic_access(address, sizeof *address);
    const T old = *address;
    *address = change(old);
    return old;
}

template <class T> struct Same { typedef T type; };

} // namespace cudahost

#if defined(__SANITIZE_THREAD__) /* the executor's own variables are not to be watched (races.cpp) */
#define threadIdx (cudahost::here().thread)
#define blockIdx (cudahost::here().block)
#define blockDim (cudahost::here().block_size)
#define gridDim (cudahost::here().grid_size)
#else
#define threadIdx (cudahost::self->index)
#define blockIdx (cudahost::block_index)
#define blockDim (cudahost::block_size)
#define gridDim (cudahost::grid_size)
#endif
#define warpSize 32
#define __syncthreads() cudahost::barrier(CUDAHOST_HERE("__syncthreads"), 0, cudahost::COUNT)
#define __syncthreads_count(p) cudahost::barrier(CUDAHOST_HERE("__syncthreads_count"), (p) != 0, cudahost::COUNT)
#define __syncthreads_and(p) cudahost::barrier(CUDAHOST_HERE("__syncthreads_and"), (p) != 0, cudahost::ALL)
#define __syncthreads_or(p) cudahost::barrier(CUDAHOST_HERE("__syncthreads_or"), (p) != 0, cudahost::ANY)
#define __syncwarp(...) ((void)cudahost::ballot(0xffffffffu, false, CUDAHOST_HERE("__syncwarp")))
#define __shfl_sync(...) cudahost::shuffle(CUDAHOST_HERE("__shfl_sync"), cudahost::FROM, __VA_ARGS__)
#define __shfl_up_sync(...) cudahost::shuffle(CUDAHOST_HERE("__shfl_up_sync"), cudahost::UP, __VA_ARGS__)
#define __shfl_down_sync(...) cudahost::shuffle(CUDAHOST_HERE("__shfl_down_sync"), cudahost::DOWN, __VA_ARGS__)
#define __shfl_xor_sync(...) cudahost::shuffle(CUDAHOST_HERE("__shfl_xor_sync"), cudahost::XOR, __VA_ARGS__)
#define __ballot_sync(mask, p) cudahost::ballot(mask, (p) != 0, CUDAHOST_HERE("__ballot_sync"))
#define __any_sync(mask, p) (cudahost::ballot(mask, (p) != 0, CUDAHOST_HERE("__any_sync")) != 0)
#define __all_sync(mask, p) (cudahost::ballot(mask, (p) != 0, CUDAHOST_HERE("__all_sync")) == 0xffffffffu)

template <class T> T atomicAdd(T *p, typename cudahost::Same<T>::type v) {
    return cudahost::atomic(p, [v](T old) { return T(old + v); });
}
template <class T> T atomicMax(T *p, typename cudahost::Same<T>::type v) {
    return cudahost::atomic(p, [v](T old) { return old > v ? old : v; });
}
template <class T> T atomicMin(T *p, typename cudahost::Same<T>::type v) {
    return cudahost::atomic(p, [v](T old) { return old < v ? old : v; });
}
template <class T> T __ldg(const T *p) {
    return *p;
}
template <class A, class B> constexpr std::common_type_t<A, B> min(A a, B b) {
    return b < a ? b : a;
}
template <class A, class B> constexpr std::common_type_t<A, B> max(A a, B b) {
    return a < b ? b : a;
}
inline float rsqrtf(float x) {
    return 1 / std::sqrt(x);
}
inline float __fdividef(float a, float b) {
    return a / b;
}
inline float __fdiv_rn(float a, float b) {
    return a / b;
}
inline float __expf(float x) {
    return std::exp(x);
}
inline float __fadd_rn(float a, float b) {
    return a + b;
}
inline float __fmul_rn(float a, float b) {
    return a * b;
}
inline double __dadd_rn(double a, double b) {
    return a + b;
}
inline double __dmul_rn(double a, double b) {
    return a * b;
}
inline long long __double2ll_rn(double x) {
    return std::llrint(x);
}
inline long long __float2ll_rn(float x) {
    return std::llrint(x);
}
inline int __popc(unsigned x) {
    return __builtin_popcount(x);
}

#endif

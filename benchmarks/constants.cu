// SPDX-License-Identifier: BSD-3-Clause
// The constants of a GPU that the designs of the kernels rest on, one `name,value,unit` a line: what a node of a graph,
// a barrier of the grid, of a cluster and of a block cost; how fast plain loads read; and what it costs to add up the
// gradients of all blocks in a fixed order. Standalone: nvcc -O3 -std=c++20 -arch=sm_90 constants.cu
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "constants.cuh"

namespace {

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}
#define CHECK(call) check(call, #call)

cudaStream_t stream;
int multiprocessors, major;

void print(const std::string& name, double value, const char* unit) {
  std::printf("%s,%.6g,%s\n", name.c_str(), value, unit);
  std::fflush(stdout);
}

// Microseconds between two events around a call, the median of 11.
double microseconds(const std::function<void()>& run) {
  cudaEvent_t start, end;
  CHECK(cudaEventCreate(&start));
  CHECK(cudaEventCreate(&end));
  std::vector<float> times(11);
  run();
  for (float& time : times) {
    CHECK(cudaEventRecord(start, stream));
    run();
    CHECK(cudaEventRecord(end, stream));
    CHECK(cudaEventSynchronize(end));
    CHECK(cudaEventElapsedTime(&time, start, end));
  }
  CHECK(cudaEventDestroy(start));
  CHECK(cudaEventDestroy(end));
  std::nth_element(times.begin(), times.begin() + 5, times.end());
  return 1e3 * times[5];
}

// Microseconds a launch, out of `count` in a row in a graph.
double in_graph(int count, const std::function<void()>& launch) {
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  launch();  // loads the kernel, which a capture may refuse to do
  CHECK(cudaStreamSynchronize(stream));
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  for (int i = 0; i < count; ++i) launch();
  CHECK(cudaStreamEndCapture(stream, &graph));
  CHECK(cudaGraphInstantiate(&executable, graph, 0));
  const double time = microseconds([&] { CHECK(cudaGraphLaunch(executable, stream)); }) / count;
  CHECK(cudaGraphExecDestroy(executable));
  CHECK(cudaGraphDestroy(graph));
  return time;
}

// Microseconds an iteration of a kernel's loop, from two lengths of it.
double per_iteration(const std::function<void(int)>& launch) {
  const int few = 500, many = 2500;
  return (microseconds([&] { launch(many); }) - microseconds([&] { launch(few); })) / (many - few);
}

struct Shape {
  int blocks, threads, cluster = 1;
};

// The shape as the CUDA runtime takes it; it points to its own attribute, so it stays where it is.
struct Config : cudaLaunchConfig_t {
  explicit Config(const Shape& shape) : cudaLaunchConfig_t{} {
    gridDim = dim3(unsigned(shape.blocks));
    blockDim = dim3(unsigned(shape.threads));
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = unsigned(shape.cluster);
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    attrs = &cluster;
    numAttrs = shape.cluster > 1 ? 1 : 0;
  }
  Config(const Config&) = delete;

  cudaLaunchAttribute cluster = {};
};

template <class... Parameters>
void launch(void (*kernel)(Parameters...), const Shape& shape, Parameters... arguments) {
  Config config(shape);
  config.stream = stream;
  CHECK(cudaLaunchKernelEx(&config, kernel, arguments...));
}

// Whether the device can run clusters of that shape at all; more than 8 blocks are asked for by name.
template <class Kernel>
bool fits(Kernel* kernel, const Shape& shape) {
  int clusters = 0;
  const Config config(shape);
  const bool asked = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) == cudaSuccess;
  const bool known = asked && cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) == cudaSuccess;
  cudaGetLastError();
  return known && clusters > 0;
}

void barriers(double* out) {
  const int sms = multiprocessors;
  print("graph node of 1 block", in_graph(1000, [] { launch(empty, {1, 32}); }), "us");
  print("graph node of a block an SM", in_graph(1000, [=] { launch(empty, {sms, 256}); }), "us");
  print("grid barrier of a block an SM", per_iteration([=](int count) {
          void* arguments[] = {&count};
          CHECK(cudaLaunchCooperativeKernel(reinterpret_cast<void*>(&grid_barriers), dim3(unsigned(sms)), dim3(256),
                                            arguments, 0, stream));
        }),
        "us");
  for (int size = 2; size <= 16 && major >= 9; size *= 2)
    for (const bool push : {false, true}) {
      auto* kernel = push ? &cluster_barriers<true> : &cluster_barriers<false>;
      const Shape shape{size, 256, size};
      if (fits(kernel, shape))
        print("cluster barrier of " + std::to_string(size) + (push ? " with a push to all" : ""),
              per_iteration([=](int count) { launch(kernel, shape, count, size, out); }), "us");
    }
  for (int threads = 128; threads <= 1024; threads *= 2)
    print("sum over a block of " + std::to_string(threads),
          per_iteration([=](int count) { launch(block_reductions, {1, threads}, count, out); }), "us");
}

void reads(const float4* x, int64_t bytes, double* out) {
  for (int in_flight = 2; in_flight <= 8; in_flight *= 2)
    for (int blocks = 1; blocks <= 8; blocks *= 2) {
      auto* kernel = in_flight == 2 ? &read<2> : in_flight == 4 ? &read<4> : &read<8>;
      const Shape shape{blocks * multiprocessors, 256};
      const double time = microseconds([=] { launch(kernel, shape, x, bytes / 16, out); });
      print("read with " + std::to_string(in_flight) + " loads in flight and " + std::to_string(blocks) +
                " blocks of 256 an SM",
            double(bytes) / time / 1e3, "GB/s");
    }
}

void finishes(const float4* x, int64_t bytes, double* partial, unsigned* counter, double* out) {
  // The weights are the first row: any numbers will do.
  auto time_of = [=](auto* kernel, int blocks, int cluster, int64_t rows, int count) {
    const Shape shape{blocks / cluster * cluster, kThreads, cluster};
    return in_graph(count, [=] { launch(kernel, shape, x, rows, x, partial, counter, out); });
  };
  const bool clusters = major >= 9 && fits(&step<Finish::cluster>, {kCluster, kThreads, kCluster});
  for (int each = 1; each <= 2; ++each) {
    const int blocks = each * multiprocessors;
    const std::string of = " of 1024 sums from " + std::to_string(each) + " blocks an SM";
    const double none = time_of(&step<Finish::none>, blocks, 1, 0, 200);
    print("atomics finish" + of, time_of(&step<Finish::atomics>, blocks, 1, 0, 200) - none, "us");
    print("last-block finish" + of, time_of(&step<Finish::last_block>, blocks, 1, 0, 200) - none, "us");
    if (clusters) print("cluster finish" + of, time_of(&step<Finish::cluster>, blocks, kCluster, 0, 200) - none, "us");
  }
  for (const int64_t size : {bytes / 8, bytes}) {
    const int blocks = 2 * multiprocessors;
    const int64_t rows = size / (4 * kD);
    const std::string of = " on " + std::to_string(size >> 20) + " MB of 1024 features";
    const double atomics = time_of(&step<Finish::atomics>, blocks, 1, rows, 10);
    const double last = time_of(&step<Finish::last_block>, blocks, 1, rows, 10);
    print("plain step" + of, double(size) / last / 1e3, "GB/s");
    print("last-block over atomics finish" + of, last / atomics, "ratio");
    if (clusters)
      print("cluster over atomics finish" + of, time_of(&step<Finish::cluster>, blocks, kCluster, rows, 10) / atomics,
            "ratio");
  }
}

}  // namespace

int main() {
  CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0));
  CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
  CHECK(cudaStreamCreate(&stream));
  const int64_t bytes = int64_t(1) << 31;
  float* x;
  double *out, *partial;
  unsigned* counter;
  CHECK(cudaMalloc(&x, bytes));
  CHECK(cudaMalloc(&out, kD * sizeof(double)));
  CHECK(cudaMalloc(&partial, size_t(2) * multiprocessors * kD * sizeof(double)));
  CHECK(cudaMalloc(&counter, sizeof(unsigned)));
  CHECK(cudaMemsetAsync(partial, 0, size_t(2) * multiprocessors * kD * sizeof(double), stream));
  CHECK(cudaMemsetAsync(counter, 0, sizeof(unsigned), stream));
  launch(fill, {8 * multiprocessors, 256}, x, bytes / 4);
  CHECK(cudaStreamSynchronize(stream));

  const auto* vectors = reinterpret_cast<const float4*>(x);
  barriers(out);
  reads(vectors, bytes, out);
  finishes(vectors, bytes, partial, counter, out);
  CHECK(cudaDeviceSynchronize());
  return 0;
}

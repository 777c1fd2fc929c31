// What ThreadSanitizer cannot see of OpenMP: GCC's runtime, which is not instrumented, starts and
// joins the threads of a parallel region. This GOMP_parallel takes its place and tells: what was
// done before the region happens before its threads, and they before what follows it. Built into
// the tests with KKTORCH_SANITIZE=thread.
#include <dlfcn.h>

extern "C" {

void __tsan_acquire(void* address);
void __tsan_release(void* address);

using Region = void (*)(void* data);

namespace {

struct Ordered {
  Region region;
  void* data;
  char begin, end;  // their addresses are what the sanitizer orders by
};

[[gnu::no_sanitize("thread")]] void run_ordered(void* argument) {
  auto& ordered = *static_cast<Ordered*>(argument);
  __tsan_acquire(&ordered.begin);
  ordered.region(ordered.data);
  __tsan_release(&ordered.end);
}

}  // namespace

[[gnu::no_sanitize("thread")]] void GOMP_parallel(Region region, void* data, unsigned threads,
                                                  unsigned flags) {
  using Function = void (*)(Region, void*, unsigned, unsigned);
  static const auto parallel = reinterpret_cast<Function>(dlsym(RTLD_NEXT, "GOMP_parallel"));
  Ordered ordered{region, data, 0, 0};
  __tsan_release(&ordered.begin);
  parallel(run_ordered, &ordered, threads, flags);
  __tsan_acquire(&ordered.end);
}

}  // extern "C"

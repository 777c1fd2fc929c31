#include "csrc/convex/tiles.h"

#include "csrc/common/tier_dispatch.h"

namespace kktorch::csrc {

KKTORCH_DEFINE_TIERED(TileKernels, tile_kernels)

template const TileKernels<double>& tile_kernels<double>();
template const TileKernels<float>& tile_kernels<float>();

}  // namespace kktorch::csrc

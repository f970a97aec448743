// Stands in for PyTorch's header: see CUDAStream.h.
#pragma once

#include "CUDAStream.h"

#include "cuda/stepwise_backward.h"
#include "cuda/stepwise_forward.h"

template struct rnnfast::cuda::Stepwise<rnnfast::cuda::F16>;

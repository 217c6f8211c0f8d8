#include "cuda/stepwise/backward.h"
#include "cuda/stepwise/forward.h"

template struct rnnfast::cuda::Stepwise<float>;

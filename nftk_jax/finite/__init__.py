"""Networks of finite width: the paper's MLP and NFT-K MLP, how they are trained, and their tangent kernels."""

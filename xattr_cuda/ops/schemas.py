"""The list of operators: name and schema, in the namespace `xattr`. Registration, tests and benchmarks all read it."""

NAMESPACE = "xattr"

SCHEMAS: dict[str, str] = {
    "relu_mask": "(Tensor z, Tensor? slope=None) -> (Tensor h, Tensor bits)",
    "mask_mul": "(Tensor t, Tensor bits, Tensor? slope=None) -> Tensor",
    "add_relu_mask": "(Tensor a, Tensor b, Tensor? slope=None) -> (Tensor h, Tensor bits)",
    "linear_relu_mask": "(Tensor x, Tensor weight, Tensor? slope=None) -> (Tensor h, Tensor bits)",
    "matmul_mask": "(Tensor t, Tensor matrix, Tensor? bits=None, Tensor? slope=None) -> Tensor",
    "dual_weight_grad": "(Tensor delta, Tensor h, Tensor? g=None, Tensor? v=None) -> Tensor",
    "max_pool": "(Tensor h, int[] kernel, int[] stride, int[] padding, int[] dilation, bool ceil_mode) "
    "-> (Tensor out, Tensor idx)",
    "pool_pull": "(Tensor g, Tensor idx, SymInt[] shape, int[] kernel, int[] stride, int[] padding, int[] dilation) "
    "-> Tensor",
    "pool_push": "(Tensor v, Tensor idx, int[] kernel, int[] stride, int[] padding, int[] dilation) -> Tensor",
    "mlp_attribute": "(Tensor x, Tensor[] weights, float[] slopes, Tensor? u, int[] keep_h, int[] keep_g) "
    "-> (Tensor y, Tensor attribution, Tensor[] bits, Tensor[] h, Tensor[] g)",
    "mlp_attribute_backward": "(Tensor? x, Tensor? a, Tensor? s, Tensor? c, Tensor? delta, Tensor[] weights, "
    "float[] slopes, Tensor[] bits, Tensor[] g, Tensor[] h, int[] trained, bool output_tangent=False, "
    "bool input_cotangent=False) "
    "-> (Tensor[] gradients, Tensor v_end, Tensor delta_end)",
    "input_times_gradient": "(Tensor x, Tensor g, Tensor? scale=None) "
    "-> (Tensor attribution, Tensor mean_abs, Tensor l1, Tensor l2)",
    "gini": "(Tensor a) -> (Tensor value, Tensor gradient)",
}

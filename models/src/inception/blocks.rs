//! The parts of the network: convolutions with their norms, branches of them, blocks of parallel branches.

use tch::{Kind, Tensor};

use crate::parameters::{Initial, Scope};

/// Of every batch norm.
const EPSILON: f64 = 0.001;

/// What a convolution is like, without its inputs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    outputs: i64,
    /// Height and width, as the padding.
    kernel: [i64; 2],
    stride: i64,
    padding: [i64; 2],
}

impl Shape {
    /// With as much padding as keeps the size.
    pub(super) fn same(outputs: i64, kernel: [i64; 2]) -> Self {
        Self { outputs, kernel, stride: 1, padding: kernel.map(|side| side / 2) }
    }

    /// Without padding.
    pub(super) fn valid(outputs: i64, kernel: i64, stride: i64) -> Self {
        Self { outputs, kernel: [kernel; 2], stride, padding: [0; 2] }
    }
}

/// A convolution, a batch norm by its running statistics, ReLU: torchvision's `BasicConv2d`. The norm, which is linear, is
/// made part of the convolution.
#[derive(Debug)]
pub(super) struct Convolution {
    weight: Tensor,
    bias: Tensor,
    shape: Shape,
}

impl Convolution {
    /// Reads in the scope's own type, computes in `kind`.
    pub(super) fn new(scope: &Scope, kind: Kind, inputs: i64, shape: Shape) -> Self {
        let Shape { outputs, kernel: [height, width], .. } = shape;
        let norm = |name: &str, start: f64| scope.at("bn").parameter(name, &[outputs], Initial::Constant(start));
        let sides = [outputs, inputs, height, width];
        let initial = Initial::Linear { inputs: inputs * height * width };
        let (weight, bias) = fold(
            scope.at("conv").parameter("weight", &sides, initial),
            &[norm("weight", 1.0), norm("bias", 0.0), norm("running_mean", 0.0), norm("running_var", 1.0)],
        );
        Self { weight: weight.to_kind(kind), bias: bias.to_kind(kind), shape }
    }

    /// (batch, inputs, height, width) to (batch, outputs, …).
    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let Shape { stride, padding, .. } = self.shape;
        x.conv2d(&self.weight, Some(&self.bias), [stride; 2], padding, [1; 2], 1).relu_()
    }
}

/// `(conv(x) − mean) / √(variance + ε) · gain + shift` as one convolution: its weight and its bias, made in float64.
fn fold(weight: Tensor, norm: &[Tensor; 4]) -> (Tensor, Tensor) {
    let [gain, shift, mean, variance] = norm.each_ref().map(|tensor| tensor.to_kind(Kind::Double));
    let outputs = weight.size().first().copied().unwrap_or(0);
    // What the file lacks is an empty tensor here, and the file is refused when everything has been asked for.
    if outputs == 0 || norm.iter().any(|tensor| tensor.size() != [outputs]) {
        return (weight, shift);
    }
    let gain = gain / (variance + EPSILON).sqrt();
    (weight.to_kind(Kind::Double) * gain.view([-1, 1, 1, 1]), shift - mean * gain)
}

/// Pooling of windows of three by three.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pool {
    /// The mean of those pixels of the window that are in the picture, as TensorFlow has it; torchvision's network counts
    /// zeros around the picture too.
    Mean,
    /// The largest, at every pixel.
    Largest,
    /// The largest, at every second pixel and without padding.
    Halving,
}

impl Pool {
    pub(super) fn forward(self, x: &Tensor) -> Tensor {
        match self {
            Self::Mean => x.avg_pool2d([3; 2], [1; 2], [1; 2], false, false, None),
            Self::Largest => x.max_pool2d([3; 2], [1; 2], [1; 2], [1; 2], false),
            Self::Halving => x.max_pool2d([3; 2], [2; 2], [0; 2], [1; 2], false),
        }
    }
}

/// Pooling, then convolutions one after another, then one or several side by side.
#[derive(Debug)]
struct Branch {
    pool: Option<Pool>,
    chain: Vec<Convolution>,
    ends: Vec<Convolution>,
}

/// Branches side by side, whose channels follow one another in the output. In the checkpoint their convolutions are named
/// after the block, not after the branch.
#[derive(Debug)]
pub(super) struct Block(Vec<Branch>);

impl Block {
    /// (batch, inputs, height, width) to (batch, outputs, …).
    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let mut outputs = Vec::with_capacity(6);
        for Branch { pool, chain, ends } in &self.0 {
            let x = pool.map_or_else(|| x.shallow_clone(), |pool| pool.forward(x));
            let x = chain.iter().fold(x, |x, convolution| convolution.forward(&x));
            if ends.is_empty() {
                outputs.push(x);
            } else {
                outputs.extend(ends.iter().map(|end| end.forward(&x)));
            }
        }
        Tensor::cat(&outputs, 1)
    }
}

/// What builds the blocks: where a block's parameters are, the type that it computes in, and its inputs.
pub(super) struct Builder<'a> {
    pub(super) scope: &'a Scope,
    pub(super) kind: Kind,
    pub(super) inputs: i64,
}

impl Builder<'_> {
    fn branch(&self, pool: Option<Pool>, chain: &[(&str, Shape)], ends: &[(&str, Shape)]) -> Branch {
        let convolution = |inputs: i64, &(name, shape): &(&str, Shape)| {
            Convolution::new(&self.scope.at(name), self.kind, inputs, shape)
        };
        let mut inputs = self.inputs;
        let chain = chain.iter().map(|layer| {
            let built = convolution(inputs, layer);
            inputs = layer.1.outputs;
            built
        });
        let chain = chain.collect();
        Branch { pool, chain, ends: ends.iter().map(|layer| convolution(inputs, layer)).collect() }
    }

    /// 35 × 35 pixels: `FIDInceptionA`.
    pub(super) fn a(&self, pooled: i64) -> Block {
        let (one, three, five) = ([1; 2], [3; 2], [5; 2]);
        Block(vec![
            self.branch(None, &[("branch1x1", Shape::same(64, one))], &[]),
            self.branch(None, &[("branch5x5_1", Shape::same(48, one)), ("branch5x5_2", Shape::same(64, five))], &[]),
            self.branch(
                None,
                &[
                    ("branch3x3dbl_1", Shape::same(64, one)),
                    ("branch3x3dbl_2", Shape::same(96, three)),
                    ("branch3x3dbl_3", Shape::same(96, three)),
                ],
                &[],
            ),
            self.branch(Some(Pool::Mean), &[("branch_pool", Shape::same(pooled, one))], &[]),
        ])
    }

    /// From 35 × 35 pixels to 17 × 17: torchvision's `InceptionB`.
    pub(super) fn b(&self) -> Block {
        Block(vec![
            self.branch(None, &[("branch3x3", Shape::valid(384, 3, 2))], &[]),
            self.branch(
                None,
                &[
                    ("branch3x3dbl_1", Shape::same(64, [1; 2])),
                    ("branch3x3dbl_2", Shape::same(96, [3; 2])),
                    ("branch3x3dbl_3", Shape::valid(96, 3, 2)),
                ],
                &[],
            ),
            self.branch(Some(Pool::Halving), &[], &[]),
        ])
    }

    /// 17 × 17 pixels, by rows and columns of seven: `FIDInceptionC`.
    pub(super) fn c(&self, between: i64) -> Block {
        let (one, row, column) = ([1; 2], [1, 7], [7, 1]);
        Block(vec![
            self.branch(None, &[("branch1x1", Shape::same(192, one))], &[]),
            self.branch(
                None,
                &[
                    ("branch7x7_1", Shape::same(between, one)),
                    ("branch7x7_2", Shape::same(between, row)),
                    ("branch7x7_3", Shape::same(192, column)),
                ],
                &[],
            ),
            self.branch(
                None,
                &[
                    ("branch7x7dbl_1", Shape::same(between, one)),
                    ("branch7x7dbl_2", Shape::same(between, column)),
                    ("branch7x7dbl_3", Shape::same(between, row)),
                    ("branch7x7dbl_4", Shape::same(between, column)),
                    ("branch7x7dbl_5", Shape::same(192, row)),
                ],
                &[],
            ),
            self.branch(Some(Pool::Mean), &[("branch_pool", Shape::same(192, one))], &[]),
        ])
    }

    /// From 17 × 17 pixels to 8 × 8: torchvision's `InceptionD`.
    pub(super) fn d(&self) -> Block {
        let one = Shape::same(192, [1; 2]);
        Block(vec![
            self.branch(None, &[("branch3x3_1", one), ("branch3x3_2", Shape::valid(320, 3, 2))], &[]),
            self.branch(
                None,
                &[
                    ("branch7x7x3_1", one),
                    ("branch7x7x3_2", Shape::same(192, [1, 7])),
                    ("branch7x7x3_3", Shape::same(192, [7, 1])),
                    ("branch7x7x3_4", Shape::valid(192, 3, 2)),
                ],
                &[],
            ),
            self.branch(Some(Pool::Halving), &[], &[]),
        ])
    }

    /// 8 × 8 pixels: `FIDInceptionE_1`, and with [`Pool::Largest`] `FIDInceptionE_2`.
    pub(super) fn e(&self, pool: Pool) -> Block {
        let (one, row, column) = ([1; 2], Shape::same(384, [1, 3]), Shape::same(384, [3, 1]));
        Block(vec![
            self.branch(None, &[("branch1x1", Shape::same(320, one))], &[]),
            self.branch(
                None,
                &[("branch3x3_1", Shape::same(384, one))],
                &[("branch3x3_2a", row), ("branch3x3_2b", column)],
            ),
            self.branch(
                None,
                &[("branch3x3dbl_1", Shape::same(448, one)), ("branch3x3dbl_2", Shape::same(384, [3; 2]))],
                &[("branch3x3dbl_3a", row), ("branch3x3dbl_3b", column)],
            ),
            self.branch(Some(pool), &[("branch_pool", Shape::same(192, one))], &[]),
        ])
    }
}

//! How fast a model of a given size trains on random latents: updates as a training makes them, without a loader.
//!
//! `cargo run --release -p ferrotype-trainer --example speed -- --side 256 --batch 140`

#![expect(clippy::print_stdout, reason = "it is there to print")]

use std::sync::Arc;
use std::time::Instant;

use models::device;
use models::mmdit::{Mmdit, MmditConfig, MmditVariant};
use models::parameters::ParameterSet;
use models::text::TextCondition;
use models::weights::Weights;
use ranks::{Group, Mesh, MeshOptions, World};
use shards::bucket::BucketSize;
use tch::{Cuda, Device, Kind, Tensor};
use trainer::collective::{Alone, Collective, Communicator, Nccl, NcclCollective};
use trainer::config::{Precision, TrainConfig, TrainOperations};
use trainer::encode::EncodedBatch;
use trainer::learner::Learner;
use trainer::objective::{Draws, Task};

const USAGE: &str = "usage: speed [--side PIXELS] [--batch N] [--blocks N] [--width N] [--heads N] [--recompute N] [--micro N]
             [--steps N] [--warmup N] [--device cpu|cuda] [--dtype float32|bfloat16] [--weights FILE] [--threads N] [--nccl yes]
The default is the reference's model of 1.25 billion parameters at 256 pixels.";

/// Of the published text encoders: Gemma 2's and ModernBERT's 77 tokens each, in Gemma's width, and CLIP's pooled text.
const TEXT: (i64, i64, i64) = (77, 2304, 768);
/// Of the published autoencoder.
const FACTOR: i64 = 8;
const CHANNELS: i64 = 16;

struct Options {
    side: i64,
    batch: i64,
    blocks: i64,
    width: i64,
    heads: i64,
    recompute: u32,
    micro: Option<u64>,
    steps: usize,
    warmup: usize,
    device: Option<String>,
    precision: Precision,
    weights: Option<String>,
    threads: Option<i32>,
    nccl: bool,
}

impl Options {
    fn read() -> Result<Self, String> {
        let mut options = Self {
            side: 256,
            batch: 16,
            blocks: 19,
            width: 1216,
            heads: 19,
            recompute: 0,
            micro: None,
            steps: 10,
            warmup: 3,
            device: None,
            precision: Precision::Bfloat16,
            weights: None,
            threads: None,
            nccl: false,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or_else(|| USAGE.to_owned())?;
            let number = || value.parse::<i64>().map_err(|error| format!("{name} {value}: {error}\n{USAGE}"));
            match name.as_str() {
                "--side" => options.side = number()?,
                "--batch" => options.batch = number()?,
                "--blocks" => options.blocks = number()?,
                "--width" => options.width = number()?,
                "--heads" => options.heads = number()?,
                "--recompute" => options.recompute = number()? as u32,
                "--micro" => options.micro = Some(number()? as u64),
                "--steps" => options.steps = number()? as usize,
                "--warmup" => options.warmup = number()? as usize,
                "--threads" => options.threads = Some(number()? as i32),
                "--nccl" => options.nccl = value == "yes",
                "--device" => options.device = Some(value),
                "--dtype" if value == "float32" => options.precision = Precision::Float32,
                "--dtype" if value == "bfloat16" => options.precision = Precision::Bfloat16,
                "--weights" => options.weights = Some(value),
                _ => return Err(USAGE.to_owned()),
            }
        }
        Ok(options)
    }
}

fn wait(device: Device) {
    if let Device::Cuda(ordinal) = device {
        Cuda::synchronize(ordinal as i64);
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::read()?;
    if let Some(threads) = options.threads {
        tch::set_num_threads(threads);
    }
    let device = device::named(options.device.as_deref(), 0)?;
    let Options { side, batch, blocks, width, heads, .. } = options;
    let (tokens, text_width, pooled_width) = TEXT;
    let model = MmditConfig {
        channels: CHANNELS,
        patch_size: 2,
        width,
        blocks,
        heads,
        hidden: 4 * width,
        text_streams: 2,
        text_width,
        pooled_width,
        zero_gates: false,
        variant: MmditVariant::default(),
    };
    model.validate()?;
    let parameters = match &options.weights {
        Some(file) => {
            let parameters = Mmdit::allocate(&model, device);
            Mmdit::load(Weights::open(file.as_ref())?, &parameters)?;
            parameters
        }
        // Of the size that torch's linear layers begin with, but made where they are needed: there are more than a billion.
        None => random(Mmdit::allocate(&model, device)),
    };
    let config = TrainConfig {
        batch_size: batch as u64,
        precision: options.precision,
        warmup_steps: 0,
        null_caption: 0.0,
        ..TrainConfig::default()
    };
    let operations = TrainOperations {
        micro_batch: options.micro,
        recompute_blocks: options.recompute,
        ..TrainOperations::default()
    };
    let mut ranks: Box<dyn Collective> = match device {
        Device::Cuda(ordinal) if options.nccl => Box::new(world_of_one(ordinal)?),
        _ => Box::new(Alone),
    };
    let ema = parameters.duplicate();
    let mut learner = Learner::new(&config, &model, parameters, Some(ema))?;
    let latent = side / FACTOR;
    // Where an encoder on the same device would leave them.
    let normal = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, device));
    let mut encoded = EncodedBatch {
        step: 0,
        epoch: 0,
        bucket: BucketSize { width: side as u32, height: side as u32 },
        first: 0,
        latents: normal(&[batch, CHANNELS, latent, latent]),
        condition: TextCondition {
            tokens: vec![normal(&[batch, tokens, text_width]), normal(&[batch, tokens, text_width])],
            pooled: normal(&[batch, pooled_width]),
        },
    };
    let mut times = Vec::new();
    let mut loss = 0.0;
    let mut wall = Instant::now();
    for step in 0..options.warmup + options.steps {
        if step == options.warmup {
            wait(device);
            wall = Instant::now();
        }
        let since = Instant::now();
        encoded.step = step as u64;
        let task = Task::new(&config, &encoded, &Draws::new(&config, &encoded), device);
        let update = learner.update(&config, &operations, step as u64, &task, ranks.as_mut())?;
        if step + 1 == options.warmup + options.steps {
            loss = update.losses.mean(Kind::Double).double_value(&[]);
        }
        times.push(since.elapsed().as_secs_f64());
    }
    wait(device);
    // Steps are not waited for one by one: the device has work ahead of it, as in a training.
    let seconds = wall.elapsed().as_secs_f64() / options.steps as f64;
    let (gradient_ms, update_ms) = halves(&mut learner, &config, &operations, &encoded, ranks.as_mut())?;
    let per_image = model.forward_flops(latent / 2, latent / 2, 2 * tokens);
    let images = batch as f64 / seconds;
    println!(
        "{}",
        serde_json::json!({
            "program": "ferrotype",
            "parameters": Mmdit::elements(&model),
            "side": side,
            "batch": batch,
            "recompute": options.recompute,
            "images_per_second": images,
            "step_ms": seconds * 1000.0,
            "gradient_ms": gradient_ms,
            "update_ms": update_ms,
            "nccl": options.nccl,
            "forward_teraflops_per_image": per_image / 1e12,
            "teraflops": 3.0 * per_image * images / 1e12,
            "used_gib": used_memory(device),
            "loss": loss,
        })
    );
    Ok(())
}

/// Milliseconds of the gradient, and of what is done with it, each waited for.
fn halves(
    learner: &mut Learner,
    config: &TrainConfig,
    operations: &TrainOperations,
    encoded: &EncodedBatch,
    ranks: &mut dyn Collective,
) -> Result<(f64, f64), Box<dyn std::error::Error>> {
    const TIMES: u64 = 3;
    let device = learner.device();
    let (mut gradient, mut update) = (0.0, 0.0);
    for step in 0..TIMES {
        let task = Task::new(config, encoded, &Draws::new(config, encoded), device);
        wait(device);
        let since = Instant::now();
        drop(learner.differentiate(config, operations, &task, ranks)?);
        wait(device);
        gradient += since.elapsed().as_secs_f64();
        let since = Instant::now();
        drop(learner.apply(config, step)?);
        wait(device);
        update += since.elapsed().as_secs_f64();
    }
    let milliseconds = |seconds: f64| seconds * 1000.0 / TIMES as f64;
    Ok((milliseconds(gradient), milliseconds(update)))
}

/// NCCL with one rank, through the code of many; what it sends itself must arrive.
fn world_of_one(ordinal: usize) -> Result<NcclCollective, Box<dyn std::error::Error>> {
    let device = Device::Cuda(ordinal);
    let communicator = Communicator::join(Nccl::load()?, &Nccl::load()?.identifier()?, 0, 1, ordinal)?;
    let sent = Tensor::randn([1 << 20], (Kind::Float, device));
    let received = sent.zeros_like();
    communicator.exchange(&[(&sent, 0)], &[(&received, 0)])?;
    communicator.sum(&sent)?;
    communicator.settle()?;
    if !received.equal(&sent) {
        return Err("NCCL: what was sent is not what arrived".into());
    }
    drop(communicator);
    let world = World {
        rank: 0,
        size: 1,
        local_rank: ordinal,
        local_size: 1,
        master_address: "127.0.0.1".to_owned(),
        master_port: 29_571,
        secret: None,
    };
    let mesh = Arc::new(Mesh::join(&world, MeshOptions::default())?);
    Ok(NcclCollective::new(Group::of_all(mesh, 1)?, ordinal)?)
}

fn random(parameters: ParameterSet) -> ParameterSet {
    tch::no_grad(|| {
        for (parameter, view) in parameters.parameters().iter().zip(parameters.views()) {
            let mut view = view.detach();
            match parameter.shape.as_slice() {
                [_, inputs, ..] => drop(view.normal_(0.0, 0.5 / (*inputs as f64).sqrt())),
                _ if parameter.name == "time_scale" => drop(view.fill_(1000.0)),
                _ => drop(view.fill_(f64::from(u8::from(!parameter.name.ends_with("bias"))))),
            }
        }
    });
    parameters
}

/// Of a GPU: what is taken of it, by all processes.
fn used_memory(device: Device) -> Option<f64> {
    trainer::used_memory(device).map(|bytes| bytes as f64 / f64::from(1 << 30))
}

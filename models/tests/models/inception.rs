//! The network of FID against pytorch-fid and torch-fidelity, with weights of a formula; `tools/reference_inception.py` has the
//! same one and wrote the expected numbers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use models::ModelError;
use models::inception::{Inception, Resize};
use models::weights::{self, write, write_torch};
use tch::{Device, Kind, Tensor};

const CPU: Device = Device::Cpu;
/// Each convolution has six tensors: its own and its norm's.
const NORM: [&str; 4] = ["weight", "bias", "running_mean", "running_var"];
const COUNTER: &str = "num_batches_tracked";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/inception").join(name)
}

/// Names and shapes of the published file: pytorch-fid's module has exactly these.
fn published() -> BTreeMap<String, Vec<i64>> {
    let list = std::fs::read_to_string(fixture("state_dict.txt")).unwrap();
    let mut tensors = BTreeMap::new();
    for line in list.lines() {
        let (name, shape) = line.split_once(' ').unwrap();
        let shape: Vec<i64> = serde_json::from_str(shape).unwrap();
        if name.starts_with("fc.") {
            tensors.insert(name.to_owned(), shape);
            continue;
        }
        tensors.extend(NORM.map(|part| (format!("{name}.bn.{part}"), vec![shape[0]])));
        tensors.insert(format!("{name}.bn.{COUNTER}"), vec![]);
        tensors.insert(format!("{name}.conv.weight"), shape);
    }
    assert_eq!(tensors.len(), 566);
    tensors
}

/// Numbers from −1 to 1 that depend on the name and on their place.
fn noise(name: &str, place: u32) -> f64 {
    let seed = name.bytes().fold(2_166_136_261u32, |seed, byte| (seed ^ u32::from(byte)).wrapping_mul(16_777_619));
    let mut hashed = place.wrapping_add(seed).wrapping_mul(2_654_435_761);
    for (shift, factor) in [(16, 0x85eb_ca6b), (13, 0xc2b2_ae35)] {
        hashed = (hashed ^ (hashed >> shift)).wrapping_mul(factor);
    }
    f64::from(hashed ^ (hashed >> 16)) / f64::from(1u32 << 31) - 1.0
}

fn weight(name: &str, shape: &[i64]) -> Tensor {
    if name.ends_with(COUNTER) {
        return Tensor::from(1i64);
    }
    let inputs = shape[1..].iter().product::<i64>() as f64;
    let last_two: Vec<&str> = name.rsplit('.').take(2).collect();
    let (start, scale) = match last_two[..] {
        ["weight", "conv"] => (0.0, (6.0 / inputs).sqrt()),
        ["weight", "fc"] => (0.0, (3.0 / inputs).sqrt()),
        ["bias", "fc"] | ["running_mean", "bn"] => (0.0, 0.1),
        ["weight", "bn"] => (1.2, 0.25),
        ["bias", "bn"] => (-0.3, 0.1),
        ["running_var", "bn"] => (1.0, 0.5),
        _ => panic!("{name}"),
    };
    let count = shape.iter().product::<i64>() as u32;
    let values: Vec<f32> = (0..count).map(|place| (start + scale * noise(name, place)) as f32).collect();
    Tensor::from_slice(&values).view(shape)
}

fn formula() -> BTreeMap<String, Tensor> {
    published().into_iter().map(|(name, shape)| (name.clone(), weight(&name, &shape))).collect()
}

/// 8-bit pictures as numbers from 0 to 1.
fn pictures(batch: i64, height: i64, width: i64) -> Tensor {
    let mut bytes = Vec::new();
    for (b, c) in (0..batch).flat_map(|b| (0..3).map(move |c| (b, c))) {
        for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
            bytes.push((97 * b + 61 * c + (3 + b) * x + 5 * y + x * y / (4 + c)) as u8);
        }
    }
    Tensor::from_slice(&bytes).view([batch, 3, height, width]).to_kind(Kind::Float) / 255.0
}

/// Opens a file of these tensors.
fn open(tensors: &BTreeMap<String, Tensor>) -> Result<Inception, ModelError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("inception.safetensors");
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
    write(&path, &tensors).unwrap();
    Inception::open(&path, CPU, Kind::Float)
}

/// The largest difference, as a part of the reference's largest number.
fn difference(ours: &Tensor, reference: &Tensor) -> f64 {
    assert_eq!((ours.size(), ours.kind()), (reference.size(), Kind::Float));
    let [ours, reference] = [ours, reference].map(|tensor| tensor.to_kind(Kind::Double));
    (ours - &reference).abs().max().double_value(&[]) / reference.abs().max().double_value(&[])
}

#[test]
fn features_equal_those_of_pytorch_fid_and_torch_fidelity() {
    let expected = weights::read(&fixture("features.safetensors")).unwrap();
    let model = open(&formula()).unwrap();
    let (small, whole) = (pictures(2, 64, 48), pictures(1, 299, 299));
    let features = |model: &Inception, pixels: &Tensor| model.features(pixels).unwrap();
    let check = |name: &str, ours: &Tensor| {
        let difference = difference(ours, &expected[name]);
        println!("{name}: {difference:.1e}");
        assert!(difference < 1e-5, "{name}: {difference:.1e}");
    };
    check("pytorch_fid", &features(&model, &small));
    check("pytorch_fid_299", &features(&model, &whole));
    check("pytorch_fid_299", &model.features_of_prepared(&(&whole * 2.0 - 1.0)).unwrap());
    let prepared = Resize::PytorchFid.prepare(&whole);
    assert!(prepared.equal(&(&whole * 2.0 - 1.0)), "pictures of the right size keep their pixels");

    let model = model.with_resize(Resize::Tensorflow1);
    let ours = features(&model, &small.narrow(0, 0, 1));
    check("torch_fidelity", &ours);
    check("torch_fidelity_logits", &model.class_logits(&ours).unwrap());
    let apart = difference(&ours, &expected["pytorch_fid"].narrow(0, 0, 1));
    assert!(apart > 1e-3, "the two ways to resize give different features: {apart:.1e}");
    let prepared = Resize::Tensorflow1.prepare(&whole);
    assert!(difference(&prepared, &((&whole * 255.0 - 128.0) / 128.0)) < 1e-6);
}

#[test]
fn tensorflow_1_takes_pixels_from_their_upper_left_corners() {
    let ramp = Tensor::arange(598, (Kind::Float, CPU)).view([1, 1, 1, 598]) / 598.0;
    let picture = ramp.expand([1, 3, 598, 598], false);
    let prepared = Resize::Tensorflow1.prepare(&picture);
    let every_second = picture.slice(2, 0, 598, 2).slice(3, 0, 598, 2);
    assert!(difference(&prepared, &((every_second * 255.0 - 128.0) / 128.0)) < 1e-6);
    // One pixel has no neighbour to the right.
    let dot = Resize::Tensorflow1.prepare(&Tensor::full([1, 3, 1, 1], 128.0 / 255.0, (Kind::Float, CPU)));
    assert_eq!((dot.size(), dot.abs().max().double_value(&[])), (vec![1, 3, 299, 299], 0.0));
}

#[test]
fn half_precision_and_batches_give_about_the_same_features() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("inception.pth");
    write_torch(&path, &formula().into_iter().collect::<Vec<_>>()).unwrap();
    let model = Inception::open(&path, CPU, Kind::Float).unwrap();
    let pixels = pictures(3, 20, 40);
    let together = model.features(&pixels).unwrap();
    for place in 0..3 {
        let alone = model.features(&pixels.narrow(0, place, 1)).unwrap();
        assert!(difference(&alone, &together.narrow(0, place, 1)) < 1e-5);
    }
    assert_eq!(model.features(&pixels.narrow(0, 0, 0)).unwrap().size(), [0, 2048]);
    let halved = Inception::open(&path, CPU, Kind::BFloat16).unwrap().features(&pixels).unwrap();
    assert!(difference(&halved, &together) < 0.05, "{}", difference(&halved, &together));
}

#[test]
fn every_tensor_of_the_published_file_is_asked_for_and_no_other() {
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Half, CPU));
    // Without the counters, which are left out of the file or not.
    let used = || -> BTreeMap<String, Tensor> {
        let names = published().into_iter().filter(|(name, _)| !name.ends_with(COUNTER));
        names.map(|(name, shape)| (name, zeros(&shape))).collect()
    };
    assert_eq!(used().len(), 472);
    open(&used()).unwrap();

    let mut tensors = used();
    let mut lines = Vec::new();
    for (name, tensor) in used().iter().step_by(9) {
        tensors.remove(name);
        lines.push(format!("missing     {name} {:?}", tensor.size()));
    }
    for (name, shape) in [
        ("Mixed_5b.branch5x5_1.conv.weight", vec![48, 192, 3, 3]),
        ("Mixed_6b.branch7x7_2.conv.weight", vec![128, 128, 7, 1]),
        ("Mixed_7c.branch3x3dbl_3b.bn.running_var", vec![1]),
    ] {
        assert!(tensors.insert(name.into(), zeros(&shape)).is_some(), "{name}");
        lines.push(format!("misshapen   {name}: {shape:?} in the file"));
    }
    // Counters of norms that are not there are none.
    for name in ["Mixed_8a.conv.weight", "Mixed_8a.bn.num_batches_tracked", "AuxLogitsToo.conv0.bn.bias"] {
        tensors.insert(name.into(), zeros(&[1]));
        lines.push(format!("unexpected  {name} [1]"));
    }
    let Err(ModelError::StateDict { problems, .. }) = open(&tensors) else { panic!("it opened") };
    assert_eq!(problems.len(), lines.len());
    for line in lines {
        assert!(problems.iter().any(|problem| problem.trim_start().starts_with(&line)), "{line}: {problems:?}");
    }

    // torchvision's network has a second classifier, which is not needed, and other classes, which are.
    let mut tensors = used();
    tensors.insert("AuxLogits.conv0.conv.weight".into(), zeros(&[128, 768, 1, 1]));
    open(&tensors).unwrap();
    tensors.insert("fc.weight".into(), zeros(&[1000, 2048]));
    let error = open(&tensors).unwrap_err().to_string();
    assert!(error.contains("misshapen   fc.weight: [1000, 2048] in the file, [1008, 2048]"), "{error}");
}

#[test]
fn weights_and_pictures_that_mean_nothing_are_refused() {
    let mut tensors = formula();
    let model = open(&tensors).unwrap();
    for (pixels, expected) in [
        (Tensor::zeros([1, 3, 0, 5], (Kind::Float, CPU)), "Float of the shape [1, 3, 0, 5]"),
        (Tensor::zeros([1, 1, 5, 5], (Kind::Float, CPU)), "(batch, 3, height, width)"),
        (Tensor::zeros([3, 5, 5], (Kind::Float, CPU)), "[3, 5, 5]"),
        (Tensor::zeros([1, 3, 5, 5], (Kind::Uint8, CPU)), "Uint8"),
    ] {
        let error = model.features(&pixels).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let error = model.features_of_prepared(&pictures(1, 299, 298)).unwrap_err().to_string();
    assert!(error.contains("(batch, 3, 299, 299)"), "{error}");
    let error = model.class_logits(&Tensor::zeros([1, 1008], (Kind::Float, CPU))).unwrap_err().to_string();
    assert!(error.contains("(batch, 2048)"), "{error}");

    tensors.insert("Conv2d_1a_3x3.bn.bias".into(), Tensor::full([32], f64::NAN, (Kind::Float, CPU)));
    let error = open(&tensors).unwrap_err().to_string();
    assert!(error.contains("Conv2d_1a_3x3.bn.bias"), "{error}");
}

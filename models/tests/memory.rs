//! How much memory reading a model takes. Alone in its process, whose peak it measures.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

use std::fs;

use models::parameters::{Initial, Scope};
use models::weights::{Weights, write};
use tch::{Device, Kind, Tensor};

const CPU: Device = Device::Cpu;
const FLOAT: Kind = Kind::Float;

/// A line of /proc/self/status, in bytes.
fn memory(line: &str) -> i64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let value = status.lines().find_map(|l| l.strip_prefix(line)).unwrap();
    value.trim_matches(|c: char| !c.is_ascii_digit()).parse::<i64>().unwrap() * 1024
}

#[test]
fn reading_a_model_needs_the_memory_of_the_model_and_of_one_tensor() {
    const SIDE: i64 = 1448;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let one = Tensor::rand([SIDE, SIDE], (FLOAT, CPU));
    let size = SIDE * SIDE * 4;
    let tensors: Vec<_> = (0..24).map(|i| (format!("layers.{i}.weight"), one.shallow_clone())).collect();
    write(&path, &tensors).unwrap();
    drop(tensors);
    // Sets the peak back to what is held now.
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = memory("VmRSS:");
    let weights = Weights::open(&path).unwrap();
    let loaded = Scope::read(weights, CPU, FLOAT, |scope| {
        let layer = |i: i64| scope.at("layers").at(i).parameter("weight", &[SIDE, SIDE], Initial::Constant(0.0));
        (0..24).map(layer).collect::<Vec<_>>()
    });
    assert_eq!(loaded.unwrap().model.len(), 24);
    let (peak, model) = (memory("VmHWM:") - before, 24 * size);
    assert!(peak < model + 2 * size, "{} MB for a model of {} MB", peak >> 20, model >> 20);
}

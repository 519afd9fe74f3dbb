//! The published configuration, and configurations that cannot be.

use models::mmdit::{FeedForwardKind, Mmdit, MmditConfig, MmditVariant, Positions};
use tch::Device;

fn published(blocks: i64) -> MmditConfig {
    MmditConfig {
        channels: 16,
        patch_size: 2,
        width: 1216,
        blocks,
        heads: 19,
        hidden: 4864,
        text_streams: 2,
        text_width: 2304,
        pooled_width: 768,
        zero_gates: false,
        variant: MmditVariant::default(),
    }
}

#[test]
fn the_published_model_has_its_published_keys_and_size() {
    // Depth 19, width 1216: 672 tensors, 1,252,160,307 elements. Counted without allocating 5 GB, from one block less.
    let count = |blocks| {
        let set = Mmdit::allocate(&published(blocks), Device::Cpu);
        let state = set.state_dict();
        (state.len() as i64, state.iter().map(|(_, t)| t.numel() as i64).sum::<i64>())
    };
    let ((tensors_1, elements_1), (tensors_2, elements_2)) = (count(1), count(2));
    assert_eq!(tensors_1 + 18 * (tensors_2 - tensors_1), 672);
    assert_eq!(elements_1 + 18 * (elements_2 - elements_1), 1_252_160_307);
}

#[test]
fn impossible_sizes_are_refused_in_words() {
    let good = published(2);
    good.validate().unwrap();
    for (bad, word) in [
        (MmditConfig { width: 30, ..good.clone() }, "width"),
        (MmditConfig { heads: 0, ..good.clone() }, "heads"),
        (MmditConfig { blocks: -1, ..good.clone() }, "blocks"),
        (
            MmditConfig { variant: MmditVariant { position_scale: 0.0, ..good.variant }, ..good.clone() },
            "position_scale",
        ),
    ] {
        assert!(bad.validate().unwrap_err().to_string().contains(word));
    }
}

#[test]
fn a_checkpoint_from_before_there_were_variants_is_of_the_default_one() {
    let mut value = serde_json::to_value(published(2)).unwrap();
    let variant = value.as_object_mut().unwrap().remove("variant").unwrap();
    assert_eq!(serde_json::from_value::<MmditConfig>(value).unwrap(), published(2));
    assert_eq!(variant["positions"], "rope2d");
    let other = MmditVariant {
        positions: Positions::Rope2dV2,
        feed_forward: FeedForwardKind::SwiGluOld,
        ..published(2).variant
    };
    let text = serde_json::to_string(&other).unwrap();
    assert_eq!(serde_json::from_str::<MmditVariant>(&text).unwrap(), other);
}

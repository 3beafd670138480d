//! Dequantised blocks have the bits of the `gguf` package (`goldens/gguf`).

use crate::model::gguf::dequant::dequantise;
use crate::model::gguf::types::Encoding;
use std::path::Path;

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

#[test]
fn every_type_has_the_bits_of_the_reference() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../goldens/gguf");
    let types = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q4_K", "Q5_K", "Q6_K"];
    for name in types {
        let text = std::fs::read(folder.join(format!("{name}.json"))).unwrap();
        let fixture: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let number = fixture["ggml_type"].as_u64().unwrap() as u32;
        let encoding = Encoding::from_ggml(number).unwrap();
        let size = |key: &str| fixture[key].as_u64().unwrap() as usize;
        assert_eq!(encoding.block(), (size("block_size"), size("type_size")), "{name}");
        let values = dequantise(encoding, &unhex(fixture["raw"].as_str().unwrap()));
        let bits: Vec<String> = values
            .chunks_exact(4)
            .map(|b| format!("{:08x}", u32::from_le_bytes(b.try_into().unwrap())))
            .collect();
        let expected: Vec<&str> =
            fixture["expected_bits"].as_array().unwrap().iter().map(|b| b.as_str().unwrap()).collect();
        assert!(expected.len() >= 96, "{name}");
        assert_eq!(bits, expected, "{name}");
    }
}

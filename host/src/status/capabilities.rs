//! What a manager of virtual machines may expect of this program: the answer
//! to `--print-capabilities` and the `features` of the file by which QEMU and
//! libvirt discover it.
//!
//! Shape: `VHostUserBackendCapabilities` and `VHostUserBackendCapabilitiesFS`
//! of QEMU's docs/interop/vhost-user.json.

use serde::Serialize;

/// The document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// What kind of device.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// What it can do beyond what all of its kind can.
    pub features: Vec<&'static str>,
}

impl Capabilities {
    /// This program's.
    pub fn ours() -> Capabilities {
        Capabilities {
            kind: "fs",
            // No "migrate-precopy": the device's state stays here. Two are
            // virtiofsd's: --posix-acl and --security-label take a mode.
            features: vec![
                "posix-acl-negotiation-mode",
                "security-label-negotiation-mode",
                "separate-options",
            ],
        }
    }

    /// As text, without a newline at the end.
    pub fn to_json(&self) -> String {
        // Strings in a fixed shape: nothing of it can fail to be written.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_is_that_of_the_specification() {
        let text = Capabilities::ours().to_json();
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value["type"], "fs");
        let features = value["features"].as_array().expect("a list");
        assert!(features.iter().any(|feature| feature == "separate-options"));
        assert!(!features.iter().any(|feature| feature == "migrate-precopy"));
    }
}

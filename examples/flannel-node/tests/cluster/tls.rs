//! The test's own certificate authority and its certificates.

use std::path::{Path, PathBuf};

use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

/// Files for etcd and its clients. They are deleted with this value.
pub(crate) struct Tls {
    directory: tempfile::TempDir,
}

impl Tls {
    /// Creates certificates for servers at `address`.
    pub(crate) fn new(address: &str) -> Self {
        Self::with_expired(address, "none")
    }

    /// Creates certificates like [`Self::new`], of which that of this name has ended.
    pub(crate) fn with_expired(address: &str, expired: &str) -> Self {
        let tls = Self { directory: tempfile::tempdir().unwrap() };
        tls.write(address, expired);
        tls
    }

    /// Replaces all files, those of the authority too.
    pub(crate) fn renew(&self, address: &str) {
        self.write(address, "none");
    }

    fn write(&self, address: &str, expired: &str) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        std::fs::write(self.path("ca.pem"), authority.pem()).unwrap();
        for (name, subject) in [("server", address), ("client", "flannel")] {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new([subject.to_owned()]).unwrap();
            // etcd connects to itself too.
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            if name == expired {
                params.not_after = rcgen::date_time_ymd(2001, 2, 3);
            }
            let signed = params.signed_by(&key, &issuer).unwrap();
            std::fs::write(self.path(&format!("{name}.pem")), signed.pem()).unwrap();
            std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Returns the options of a server.
    pub(crate) fn of_server(&self) -> Vec<String> {
        let file = |name: &str| shown(&self.path(name));
        vec![
            "--client-cert-auth".into(),
            format!("--trusted-ca-file={}", file("ca.pem")),
            format!("--cert-file={}", file("server.pem")),
            format!("--key-file={}", file("server.key")),
        ]
    }

    /// Returns the options of the operator's connection.
    pub(crate) fn options(&self) -> ConnectOptions {
        let read = |name: &str| std::fs::read(self.path(name)).unwrap();
        let identity = Identity::from_pem(read("client.pem"), read("client.key"));
        let tls = TlsOptions::new().ca_certificate(Certificate::from_pem(read("ca.pem"))).identity(identity);
        ConnectOptions::new().with_tls(tls)
    }

    /// Returns the options of a node.
    pub(crate) fn of_client(&self) -> Vec<String> {
        let file = |name: &str| shown(&self.path(name));
        vec![
            format!("--etcd-cafile={}", file("ca.pem")),
            format!("--etcd-certfile={}", file("client.pem")),
            format!("--etcd-keyfile={}", file("client.key")),
        ]
    }
}

pub(crate) fn shown(path: &Path) -> String {
    path.to_str().expect("a path that is text").to_owned()
}

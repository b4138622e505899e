//! A configuration file as wg-quick(8) reads it.

use std::collections::HashMap;
use std::net::{SocketAddr, ToSocketAddrs as _};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use boringtun::x25519::StaticSecret;
use ipnet::IpNet;
use loden::Mtu;

/// A key of 32 bytes.
pub(crate) type Key = [u8; 32];

/// The device and its peers.
pub(crate) struct Config {
    pub(crate) private_key: StaticSecret,
    /// The device's addresses, with the prefix lengths of their networks. At most one of each family.
    pub(crate) addresses: Vec<IpNet>,
    /// The UDP port. 0 if the kernel chooses one.
    pub(crate) listen_port: u16,
    pub(crate) mtu: Option<Mtu>,
    /// True unless `Table = off`.
    pub(crate) adds_routes: bool,
    pub(crate) peers: Vec<PeerConfig>,
}

/// A peer.
#[derive(Debug, Default)]
pub(crate) struct PeerConfig {
    pub(crate) public_key: Key,
    pub(crate) preshared_key: Option<Key>,
    pub(crate) endpoint: Option<SocketAddr>,
    /// Networks that only this peer has. Host bits are cleared.
    pub(crate) allowed_ips: Vec<IpNet>,
    /// Seconds.
    pub(crate) persistent_keepalive: Option<u16>,
}

/// The reason why a file is refused.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("{network} is allowed for two peers; give it to one")]
    AllowedTwice { network: IpNet },
    #[error("the interface has no address in the family of the allowed network {network}; add one to `Address`")]
    FamilyWithoutAddress { network: IpNet },
    #[error("line {line}: `{key}` is not supported here; remove it")]
    KeyUnknown { line: usize, key: String },
    #[error("the section [{section}] has no `{key}`")]
    Missing { section: &'static str, key: &'static str },
    #[error("line {line}: `{text}` is neither a section nor `Key = Value` in one")]
    NoPair { line: usize, text: String },
    #[error("two peers have the public key {key}; remove one")]
    PeerTwice { key: String },
    #[error("the network {network} is one of the interface's own addresses; no peer can have it")]
    OwnAddress { network: IpNet },
    #[error(
        "{network} would route this host's own datagrams into the tunnel; set `Table = off` and route what you want by hand"
    )]
    RoutesAll { network: IpNet },
    #[error("the interface has {count} addresses of one family; one is supported")]
    TooManyAddresses { count: usize },
    #[error("line {line}: `{value}` is not a {what}")]
    Value { line: usize, value: String, what: &'static str },
}

/// A line `Key = Value`.
struct Pair<'a> {
    line: usize,
    key: &'a str,
    value: &'a str,
}

#[derive(Clone, Copy)]
enum Section {
    Interface,
    Peer,
}

impl Config {
    /// Parses a file. Names of hosts in endpoints are resolved.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, ConfigError> {
        let mut section = None;
        let mut private_key = None;
        let mut config = Self {
            private_key: StaticSecret::from([0; 32]),
            addresses: Vec::new(),
            listen_port: 0,
            mtu: None,
            adds_routes: true,
            peers: Vec::new(),
        };
        for (number, text) in (1..).zip(text.lines()) {
            let text = text.split('#').next().unwrap_or_default().trim();
            if text.is_empty() {
                continue;
            }
            if text.eq_ignore_ascii_case("[Interface]") {
                section = Some(Section::Interface);
            } else if text.eq_ignore_ascii_case("[Peer]") {
                section = Some(Section::Peer);
                config.peers.push(PeerConfig::default());
            } else {
                let no_pair = || ConfigError::NoPair { line: number, text: text.into() };
                let (key, value) = text.split_once('=').ok_or_else(no_pair)?;
                let pair = Pair { line: number, key: key.trim(), value: value.trim() };
                match (section, config.peers.last_mut()) {
                    (Some(Section::Interface), _) => config.set(&pair, &mut private_key)?,
                    (Some(Section::Peer), Some(peer)) => peer.set(&pair)?,
                    _ => return Err(no_pair()),
                }
            }
        }
        let key = private_key.ok_or(ConfigError::Missing { section: "Interface", key: "PrivateKey" })?;
        config.private_key = StaticSecret::from(key);
        config.check()?;
        Ok(config)
    }

    fn set(&mut self, pair: &Pair<'_>, private_key: &mut Option<Key>) -> Result<(), ConfigError> {
        match pair.key.to_ascii_lowercase().as_str() {
            "privatekey" => *private_key = Some(pair.key()?),
            "address" => self.addresses.extend(pair.networks()?),
            "listenport" => self.listen_port = pair.parse("port")?,
            "mtu" => {
                let mtu = pair.parse("number of bytes")?;
                self.mtu = Some(Mtu::new(mtu).map_err(|_| pair.wrong("MTU from 68 to 65535"))?);
            }
            "table" => {
                self.adds_routes = match pair.value {
                    "auto" => true,
                    "off" => false,
                    _ => return Err(pair.wrong("table that is supported: off or auto")),
                }
            }
            _ => return Err(pair.unknown()),
        }
        Ok(())
    }

    /// Checks what one line does not tell.
    fn check(&self) -> Result<(), ConfigError> {
        let has_address = |is_ipv4: bool| self.addresses.iter().filter(|own| own.addr().is_ipv4() == is_ipv4).count();
        match has_address(true).max(has_address(false)) {
            0 => return Err(ConfigError::Missing { section: "Interface", key: "Address" }),
            1 => {}
            count => return Err(ConfigError::TooManyAddresses { count }),
        }
        let (mut keys, mut owners) = (HashMap::new(), HashMap::new());
        for (index, peer) in self.peers.iter().enumerate() {
            if peer.public_key == [0; 32] {
                return Err(ConfigError::Missing { section: "Peer", key: "PublicKey" });
            }
            if keys.insert(peer.public_key, index).is_some() {
                return Err(ConfigError::PeerTwice { key: BASE64_STANDARD.encode(peer.public_key) });
            }
            for network in &peer.allowed_ips {
                let network = *network;
                if owners.insert(network, index).is_some_and(|other| other != index) {
                    return Err(ConfigError::AllowedTwice { network });
                }
                if has_address(network.addr().is_ipv4()) == 0 {
                    return Err(ConfigError::FamilyWithoutAddress { network });
                }
                if self.addresses.iter().any(|own| IpNet::from(own.addr()) == network) {
                    return Err(ConfigError::OwnAddress { network });
                }
                if network.prefix_len() == 0 && self.adds_routes {
                    return Err(ConfigError::RoutesAll { network });
                }
            }
        }
        Ok(())
    }
}

impl PeerConfig {
    fn set(&mut self, pair: &Pair<'_>) -> Result<(), ConfigError> {
        match pair.key.to_ascii_lowercase().as_str() {
            "publickey" => self.public_key = pair.key()?,
            "presharedkey" => self.preshared_key = Some(pair.key()?),
            "endpoint" => {
                let mut found = pair.value.to_socket_addrs().map_err(|_| pair.wrong("known host and port"))?;
                self.endpoint = found.next();
            }
            "allowedips" => self.allowed_ips.extend(pair.networks()?.iter().map(IpNet::trunc)),
            "persistentkeepalive" if pair.value.eq_ignore_ascii_case("off") => self.persistent_keepalive = None,
            "persistentkeepalive" => {
                self.persistent_keepalive = Some(pair.parse("number of seconds")?).filter(|seconds| *seconds > 0);
            }
            _ => return Err(pair.unknown()),
        }
        Ok(())
    }
}

impl Pair<'_> {
    fn wrong(&self, what: &'static str) -> ConfigError {
        // A key is not shown, because it may be a secret one.
        let value = if self.key.to_ascii_lowercase().ends_with("key") { "…" } else { self.value };
        ConfigError::Value { line: self.line, value: value.into(), what }
    }

    fn unknown(&self) -> ConfigError {
        ConfigError::KeyUnknown { line: self.line, key: self.key.into() }
    }

    fn parse<T: std::str::FromStr>(&self, what: &'static str) -> Result<T, ConfigError> {
        self.value.parse().map_err(|_| self.wrong(what))
    }

    fn key(&self) -> Result<Key, ConfigError> {
        let bytes = BASE64_STANDARD.decode(self.value).ok();
        bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| self.wrong("key of 32 bytes in base64"))
    }

    /// Parses networks between commas. An address alone is a network of one.
    fn networks(&self) -> Result<Vec<IpNet>, ConfigError> {
        let items = self.value.split(',').map(str::trim).filter(|item| !item.is_empty());
        let network =
            |item: &str| item.parse().ok().or_else(|| Some(IpNet::from(item.parse::<std::net::IpAddr>().ok()?)));
        items.map(|item| network(item).ok_or_else(|| self.wrong("list of addresses with prefix lengths"))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    const OTHER: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

    fn error(text: &str) -> String {
        let text = text.replace("KEY", KEY).replace("OTHER", OTHER);
        Config::parse(&text).err().unwrap_or_else(|| panic!("accepted: {text}")).to_string()
    }

    #[test]
    fn a_file_of_wg_quick_is_read() {
        let text = format!(
            "# home\n[interface]\nPrivateKey={KEY}\nAddress = 10.7.0.1/24, fd07::1/64 # both\nListenPort = 51820\n\
             MTU = 1400\nTable = off\n\n[Peer]\nPublicKey = {OTHER}\nPresharedKey = {KEY}\n\
             AllowedIPs = 10.7.0.2/32, fd07::2\nAllowedIPs = 192.168.9.7/24\nEndpoint = [::1]:7\nPersistentKeepalive = 25\n\
             [Peer]\npublickey = {KEY}\nallowedips = 0.0.0.0/0\nPersistentKeepalive = off\n"
        );
        let config = Config::parse(&text).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(config.private_key.to_bytes(), [1; 32]);
        assert_eq!(config.addresses, ["10.7.0.1/24".parse().unwrap(), "fd07::1/64".parse::<IpNet>().unwrap()]);
        assert_eq!((config.listen_port, config.mtu, config.adds_routes), (51820, Mtu::new(1400).ok(), false));
        let [first, second] = &config.peers[..] else { panic!("{:?}", config.peers) };
        assert_eq!((first.public_key, first.preshared_key), ([2; 32], Some([1; 32])));
        let allowed: Vec<_> = first.allowed_ips.iter().map(IpNet::to_string).collect();
        assert_eq!(allowed, ["10.7.0.2/32", "fd07::2/128", "192.168.9.0/24"]);
        assert_eq!((first.endpoint, first.persistent_keepalive), ("[::1]:7".parse().ok(), Some(25)));
        assert_eq!((second.endpoint, second.persistent_keepalive), (None, None));
    }

    #[test]
    fn a_wrong_file_is_refused_with_the_line_or_the_value() {
        const HEAD: &str = "[Interface]\nPrivateKey = KEY\nAddress = 10.7.0.1/24\n";
        let with = |rest: &str| error(&format!("{HEAD}{rest}"));
        assert_eq!(error("[Interface]\nAddress = 10.7.0.1\n"), "the section [Interface] has no `PrivateKey`");
        assert_eq!(error("[Interface]\nPrivateKey = KEY\n"), "the section [Interface] has no `Address`");
        assert_eq!(error("ListenPort = 1"), "line 1: `ListenPort = 1` is neither a section nor `Key = Value` in one");
        assert_eq!(with("DNS = 1.1.1.1"), "line 4: `DNS` is not supported here; remove it");
        assert_eq!(with("PrivateKey = abc"), "line 4: `…` is not a key of 32 bytes in base64");
        assert_eq!(with("ListenPort = 65536"), "line 4: `65536` is not a port");
        assert_eq!(with("MTU = 60"), "line 4: `60` is not a MTU from 68 to 65535");
        assert_eq!(with("Address = 10.8.0.1/24"), "the interface has 2 addresses of one family; one is supported");
        assert_eq!(with("[Peer]\nAllowedIPs = 10.7.0.2"), "the section [Peer] has no `PublicKey`");
        let peer = |rest: &str| with(&format!("[Peer]\nPublicKey = OTHER\nAllowedIPs = {rest}\n"));
        assert_eq!(peer("10.7.0.2/33"), "line 6: `10.7.0.2/33` is not a list of addresses with prefix lengths");
        assert!(peer("10.7.0.2\nEndpoint = 10.168.0.3").starts_with("line 7: `10.168.0.3` is not a known host"));
        assert!(peer("10.7.0.1").starts_with("the network 10.7.0.1/32 is one of the interface's own addresses"));
        assert!(peer("0.0.0.0/0").starts_with("0.0.0.0/0 would route"));
        assert!(peer("fd07::/64").starts_with("the interface has no address in the family of"));
        assert!(peer("10.7.0.2\n[Peer]\nPublicKey = OTHER").starts_with("two peers have the public key AgIC"));
        assert!(peer("10.7.0.2\n[Peer]\nPublicKey = KEY\nAllowedIPs = 10.7.0.2").contains("allowed for two peers"));
    }
}

//! The operator's commands: set the network's config, and list config and leases.

use std::io::{ErrorKind, Read};

use loden::lease::flannel::{ConfigError, LeaseKey, LeaseReader, LeaseValue, NetworkConfig};
use loden::lease::{Lease, LeaseEvent, SubnetRange};

use crate::args::SetConfig;
use crate::output::{Event, Output};
use crate::registry::Registry;
use crate::start::report_config;
use crate::{Error, Failure};

/// Validates and writes a config.
pub(crate) async fn set_config(mut registry: Registry, args: &SetConfig, output: &Output) -> Result<(), Failure> {
    let text = match (&args.network, &args.file) {
        (Some(network), _) => {
            let (first, last) = (args.subnet_min.map(Into::into), args.subnet_max.map(Into::into));
            let range = SubnetRange::new(*network, args.subnet_len, first, last)?;
            let config = NetworkConfig::new(range, args.port.unwrap_or(loden::lease::flannel::DEFAULT_PORT))?;
            match args.ipv6_network {
                None => config.to_json(),
                Some(network) => {
                    let (first, last) = (args.ipv6_subnet_min.map(Into::into), args.ipv6_subnet_max.map(Into::into));
                    let range = SubnetRange::new(network, args.ipv6_subnet_len, first, last);
                    config.with_ipv6(range.map_err(ConfigError::Ipv6Range)?)?.to_json()
                }
            }
        }
        (None, Some(file)) => read(file)?,
        (None, None) => return Err("name the network, or a file of JSON".into()),
    };
    let config = NetworkConfig::from_json(text.as_bytes())?;
    registry.set_config(text.trim()).await.map_err(failed)?;
    report_config(&config, output);
    let reader = LeaseReader::new(registry.prefix(), config.port());
    let entries = registry.list().await.map_err(failed)?.entries;
    let held = entries.iter().filter(|entry| LeaseValue::from_json(&entry.value).is_ok());
    let strangers = held.filter_map(|entry| entry.held(&reader)).filter(|(key, _)| !fits(&config, key)).count();
    if strangers > 0 {
        let (fits, hosts) =
            if strangers == 1 { ("lease does", "its host leases") } else { ("leases do", "their hosts lease") };
        let reason = format!("{strangers} {fits} not fit this config; {hosts} other subnets when started again");
        output.print(&Event::Warning { reason });
    }
    Ok(())
}

fn read(file: &std::path::Path) -> Result<String, Error> {
    let mut text = String::new();
    let outcome = match file.to_str() {
        Some("-") => std::io::stdin().read_to_string(&mut text),
        _ => std::fs::File::open(file).and_then(|mut file| file.read_to_string(&mut text)),
    };
    outcome.map_err(|error| format!("--file {}: {error}", file.display()))?;
    Ok(text)
}

/// Returns true if a lease has a subnet of each range of the config.
pub(crate) fn fits(config: &NetworkConfig, key: &LeaseKey) -> bool {
    let fits_v6 = match (config.ipv6(), key.ipv6) {
        (None, None) => true,
        (Some(range), Some(subnet)) => range.contains(subnet.into()),
        (Some(_), None) | (None, Some(_)) => false,
    };
    config.range().contains(key.ipv4.into()) && fits_v6
}

/// Prints the config and every key, including unreadable ones.
pub(crate) async fn list(mut registry: Registry, output: &Output) -> Result<(), Failure> {
    let text = registry.config().await.map_err(failed)?;
    let config = match text.map(|text| NetworkConfig::from_json(&text)) {
        Some(Ok(config)) => {
            report_config(&config, output);
            Some(config)
        }
        Some(Err(error)) => {
            let reason = format!("the network config at {} cannot be used: {error}", registry.config_key());
            output.print(&Event::Warning { reason });
            None
        }
        None => {
            output
                .print(&Event::Warning { reason: format!("there is no network config at {}", registry.config_key()) });
            None
        }
    };
    let port = config.map_or(loden::lease::flannel::DEFAULT_PORT, |config| config.port());
    // The next hops of hosts with IPv6 in the underlay.
    let mut reader = LeaseReader::new(registry.prefix(), port).with_ipv6_underlay();
    for entry in registry.list().await.map_err(failed)?.entries {
        let update = reader.put(&entry.key, &entry.value);
        let event = if entry.oversized {
            Event::SetAside { reason: entry.too_long() }
        } else if let Some(skipped) = update.skipped.first() {
            Event::SetAside { reason: skipped.to_string() }
        } else if let Some(LeaseEvent::Added { lease, .. }) = update.event {
            let seconds_left = match entry.grant {
                0 => None,
                grant => match registry.remaining(grant).await.map_err(failed)? {
                    Some(remaining) => Some(remaining.left.as_secs()),
                    // It has expired since.
                    None => continue,
                },
            };
            let Lease { subnet, next_hop, .. } = lease;
            let ipv6 = match update.event_v6 {
                Some(LeaseEvent::Added { lease, .. }) => Some(lease),
                _ => None,
            };
            Event::Held {
                subnet: subnet.to_string(),
                next_hop: next_hop.to_string(),
                subnet_v6: ipv6.map(|lease| lease.subnet.to_string()),
                next_hop_v6: ipv6.map(|lease| lease.next_hop.to_string()),
                seconds_left,
            }
        } else {
            continue;
        };
        match output.answer(&event) {
            // The reader closed the pipe, as `head` does.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            outcome => outcome.map_err(|error| failed(format!("standard output: {error}")))?,
        }
    }
    Ok(())
}

pub(crate) fn failed(reason: impl Into<Error>) -> Failure {
    Failure { status: 1, reason: reason.into() }
}

//! The operator's commands: set the network's config, and list config and leases.

use std::io::{ErrorKind, Read};

use loden::lease::SubnetRange;
use loden::lease::flannel::{LeaseReader, NetworkConfig};
use loden::lease::{Lease, LeaseEvent};

use crate::args::SetConfig;
use crate::output::{Event, Output};
use crate::registry::{Entry, Registry};
use crate::start::report_config;
use crate::{Error, Failure};

/// Validates and writes a config.
pub(crate) async fn set_config(mut registry: Registry, args: &SetConfig, output: &Output) -> Result<(), Failure> {
    let text = match (&args.network, &args.file) {
        (Some(network), _) => {
            let (first, last) = (args.subnet_min.map(Into::into), args.subnet_max.map(Into::into));
            let range = SubnetRange::new(*network, args.subnet_len, first, last)?;
            NetworkConfig::new(range, args.port.unwrap_or(loden::lease::flannel::DEFAULT_PORT))?.to_json()
        }
        (None, Some(file)) => read(file)?,
        (None, None) => return Err("name the network, or a file of JSON".into()),
    };
    let config = NetworkConfig::from_json(text.as_bytes())?;
    registry.set_config(text.trim()).await.map_err(failed)?;
    report_config(&config, output);
    let strangers = leases(&mut registry, &config).await.map_err(failed)?;
    let strangers = strangers.iter().filter(|lease| !config.range().contains(lease.subnet)).count();
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

async fn leases(registry: &mut Registry, config: &NetworkConfig) -> Result<Vec<Lease>, Error> {
    let mut reader = LeaseReader::new(registry.prefix(), config.port());
    let entries = registry.list().await?.entries;
    let entries = entries.iter().map(|Entry { key, value, .. }| (key.as_slice(), value.as_slice()));
    Ok(match reader.snapshot(entries).event {
        Some(LeaseEvent::Snapshot(leases)) => leases.into_iter().map(|(_, lease)| lease).collect(),
        _ => Vec::new(),
    })
}

/// Prints the config and every key, including unreadable ones.
pub(crate) async fn list(mut registry: Registry, output: &Output) -> Result<(), Failure> {
    let text = registry.config().await.map_err(failed)?;
    let port = match text.map(|text| NetworkConfig::from_json(&text)) {
        Some(Ok(config)) => {
            report_config(&config, output);
            config.port()
        }
        Some(Err(error)) => {
            let reason = format!("the network config at {} cannot be used: {error}", registry.config_key());
            output.print(&Event::Warning { reason });
            loden::lease::flannel::DEFAULT_PORT
        }
        None => {
            output
                .print(&Event::Warning { reason: format!("there is no network config at {}", registry.config_key()) });
            loden::lease::flannel::DEFAULT_PORT
        }
    };
    let mut reader = LeaseReader::new(registry.prefix(), port);
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
            Event::Held { subnet: subnet.to_string(), next_hop: next_hop.to_string(), seconds_left }
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

fn failed(reason: impl Into<Error>) -> Failure {
    Failure { status: 1, reason: reason.into() }
}

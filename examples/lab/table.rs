//! The results for a terminal.

use std::fmt::Write;

use crate::measure::SWEEP;
use crate::results::{Load, Metric, Results, UdpFigure, number};
use crate::target::{self, Target};
use crate::variant::Variant;

/// The variant to which ratios are given.
const BASES: [(Variant, &str); 3] =
    [(Variant::Plain, "× all off"), (Variant::Vxlan, "× VXLAN"), (Variant::Null, "× null")];

/// The metrics of one part of the table, and the column that the ratios are of.
struct Block {
    title: &'static str,
    columns: Vec<(&'static str, Metric)>,
    ratio_of: usize,
}

pub(crate) fn of(results: &Results) -> String {
    let mut text = String::new();
    for block in blocks() {
        add_block(&mut text, results, &block);
    }
    add_sweep(&mut text, results);
    add_targets(&mut text, &target::all(results));
    text
}

fn blocks() -> Vec<Block> {
    let tcp = |title, streams| {
        let columns = vec![("Gbit/s", Metric::TcpRate { streams }), ("CPU s/GB", Metric::TcpCpu { streams })];
        Block { title, columns, ratio_of: 0 }
    };
    let udp = |title, payload, load| {
        let metric = |figure| Metric::Udp { payload, load, figure };
        let columns = vec![
            ("sent k/s", metric(UdpFigure::Sent)),
            ("recv k/s", metric(UdpFigure::Received)),
            ("lost %", metric(UdpFigure::Loss)),
        ];
        Block { title, columns, ratio_of: 1 }
    };
    vec![
        tcp("TCP, one stream", 1),
        tcp("TCP, four streams", 4),
        udp("64-byte UDP at overload", 64, Load::Overload),
        udp("64-byte UDP at half of that", 64, Load::Half),
        udp("1,400-byte UDP at overload", 1400, Load::Overload),
        udp("1,400-byte UDP at half of that", 1400, Load::Half),
        Block {
            title: "Round trip of one datagram",
            columns: vec![("median µs", Metric::RttMedian), ("p99 µs", Metric::RttP99)],
            ratio_of: 0,
        },
        Block { title: "Memory, the larger end", columns: vec![("peak MiB", Metric::PeakMemory)], ratio_of: 0 },
    ]
}

fn add_block(text: &mut String, results: &Results, block: &Block) {
    let Some((_, leading)) = block.columns.get(block.ratio_of).copied() else { return };
    let rows: Vec<_> = results.variants().filter(|variant| results.median(*variant, leading).is_some()).collect();
    if rows.is_empty() {
        return;
    }
    let names = block.columns.iter().map(|(name, _)| *name).chain(BASES.map(|(_, name)| name));
    line(text, block.title, names.map(str::to_owned));
    for variant in rows {
        let values = block.columns.iter().map(|(_, metric)| results.median(variant, *metric));
        let ratios = BASES.map(|(base, _)| results.ratio(variant, base, leading));
        line(text, &format!("  {}", variant.title()), values.chain(ratios).map(cell));
    }
    text.push('\n');
}

fn add_sweep(text: &mut String, results: &Results) {
    let rows = SWEEP.map(|load| {
        let metric = |figure| Metric::Udp { payload: 64, load, figure };
        [UdpFigure::Sent, UdpFigure::Received, UdpFigure::Loss]
            .map(|figure| results.median(Variant::Tunnel, metric(figure)))
    });
    if rows.iter().flatten().all(Option::is_none) {
        return;
    }
    line(text, "64-byte UDP at rising loads", ["sent k/s", "recv k/s", "lost %"].map(str::to_owned));
    for (load, row) in SWEEP.iter().zip(rows) {
        let offered = match load {
            Load::Offered(rate) => format!("  {} k/s offered", rate / 1000),
            Load::Half | Load::Overload | Load::Unlimited => "  as much as goes".to_owned(),
        };
        line(text, &offered, row.map(cell));
    }
    text.push('\n');
}

fn add_targets(text: &mut String, targets: &[Target]) {
    for target in targets {
        let verdict = if target.is_reached() { "reached    " } else { "NOT reached" };
        let (what, bound, got) = (target.what, target.bound, number(target.got));
        // Writing into a String cannot fail.
        let _ = writeln!(text, "{verdict}  {what}: {got}, wanted {bound}");
    }
}

fn cell(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), number)
}

fn line(text: &mut String, title: &str, cells: impl IntoIterator<Item = String>) {
    let _ = write!(text, "{title:<32}");
    for cell in cells {
        let _ = write!(text, "{cell:>11}");
    }
    text.push('\n');
}

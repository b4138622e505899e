//! The results as a picture: a panel per metric, a bar per variant.

use svg::Document;
use svg::node::element::{Group, Rectangle, Style, Text, Title};

use crate::results::{Load, Metric, Results, number};
use crate::variant::Variant;

/// Pixels.
const WIDTH: usize = 880;
const MARGIN: usize = 16;
const COLUMNS: usize = 2;
const PANEL_WIDTH: usize = (WIDTH - 2 * MARGIN) / COLUMNS;
const PANEL_HEAD: usize = 44;
const PANEL_FOOT: usize = 22;
const ROW: usize = 20;
const BAR: usize = 14;
/// The space left of the bars for the names, and right of the longest for its value.
const NAMES: usize = 158;
const VALUES: usize = 62;

/// The colours follow the reader's preference, which browsers report.
const STYLE: &str = "
text { font: 12px system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif; fill: #1f2328 }
.title { font-weight: 600; font-size: 13px } .note, .value { fill: #59636e }
.page { fill: #ffffff; stroke: #d1d9e0 }
.tunnel { fill: #0969da } .part { fill: #80b3ec } .plain { fill: #b6cfea } .kernel { fill: #9a8c6f } .null { fill: #c4c9d0 }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc } .note, .value { fill: #9198a1 } .page { fill: #0d1117; stroke: #3d444d }
.tunnel { fill: #4493f8 } .part { fill: #2b5f9e } .plain { fill: #23456e } .kernel { fill: #84775c } .null { fill: #565d66 }
}";

struct Panel {
    title: &'static str,
    note: &'static str,
    bars: Vec<(Variant, f64)>,
}

pub(crate) fn of(results: &Results) -> String {
    let panels: Vec<_> = panels(results).into_iter().filter(|panel| !panel.bars.is_empty()).collect();
    let mut content = Group::new();
    let mut top = MARGIN;
    for line in panels.chunks(COLUMNS) {
        for (column, panel) in line.iter().enumerate() {
            content = content.add(drawn(panel, MARGIN + column * PANEL_WIDTH, top));
        }
        top += line.iter().map(Panel::height).max().unwrap_or(0);
    }
    let (rounds, seconds) = (results.rounds, results.window.as_secs_f64());
    let of = if rounds == 1 { "One round".to_owned() } else { format!("Medians of {rounds} rounds in turns") };
    let how = format!("{of}, {seconds} s for each measurement; pods, hosts and tunnels share one machine.");
    content = content.add(text(&how, "note", MARGIN + 4, top + 4, "start"));
    let height = top + MARGIN;
    let page = Rectangle::new()
        .set("class", "page")
        .set("x", 0.5)
        .set("y", 0.5)
        .set("width", WIDTH - 1)
        .set("height", height - 1)
        .set("rx", 6);
    let document = Document::new()
        .set("viewBox", (0, 0, WIDTH, height))
        .set("width", WIDTH)
        .set("height", height)
        .set("role", "img")
        .add(Title::new("Throughput, packet rate, round trip and processor time of each way from pod to pod"))
        .add(Style::new(STYLE))
        .add(page)
        .add(content);
    format!("{document}\n")
}

fn panels(results: &Results) -> Vec<Panel> {
    let panel = |title, note, metric| {
        let bars = results.variants().filter_map(|variant| Some((variant, results.median(variant, metric)?))).collect();
        Panel { title, note, bars }
    };
    let received = |payload, load| Metric::Udp { payload, load, figure: crate::results::UdpFigure::Received };
    vec![
        panel("TCP, one stream", "Gbit/s, more is better", Metric::TcpRate { streams: 1 }),
        panel("TCP, four streams", "Gbit/s, more is better", Metric::TcpRate { streams: 4 }),
        panel("64-byte UDP at overload", "thousands received per second, more is better", received(64, Load::Overload)),
        panel(
            "1,400-byte UDP at overload",
            "thousands received per second, more is better",
            received(1400, Load::Overload),
        ),
        panel("Round trip of one datagram", "µs, median, less is better", Metric::RttMedian),
        panel("Processor time of the tunnel", "seconds per GB of TCP, less is better", Metric::TcpCpu { streams: 1 }),
    ]
}

impl Panel {
    fn height(&self) -> usize {
        PANEL_HEAD + self.bars.len() * ROW + PANEL_FOOT
    }
}

fn drawn(panel: &Panel, left: usize, top: usize) -> Group {
    let most = panel.bars.iter().map(|(_, value)| *value).fold(f64::MIN_POSITIVE, f64::max);
    let mut group = Group::new().add(text(panel.title, "title", left + 4, top + 14, "start")).add(text(
        panel.note,
        "note",
        left + 4,
        top + 31,
        "start",
    ));
    for (row, (variant, value)) in panel.bars.iter().enumerate() {
        let y = top + PANEL_HEAD + row * ROW;
        let length = value / most * (PANEL_WIDTH - NAMES - VALUES) as f64;
        let bar = Rectangle::new()
            .set("class", class(*variant))
            .set("x", left + NAMES)
            .set("y", y)
            .set("width", format!("{:.1}", length.max(1.0)))
            .set("height", BAR)
            .set("rx", 2);
        let baseline = y + BAR - 3;
        let behind = left + NAMES + length as usize + 6;
        group = group.add(text(variant.title(), "name", left + NAMES - 8, baseline, "end")).add(bar).add(text(
            &number(*value),
            "value",
            behind,
            baseline,
            "start",
        ));
    }
    group
}

fn text(content: &str, class: &str, x: usize, y: usize, anchor: &str) -> Text {
    Text::new(content).set("class", class).set("x", x).set("y", y).set("text-anchor", anchor)
}

fn class(variant: Variant) -> &'static str {
    match variant {
        Variant::Tunnel | Variant::Ipv6 | Variant::OverIpv6 => "tunnel",
        Variant::NoTunTso | Variant::NoTunUso | Variant::NoUdpGso | Variant::NoUdpGro | Variant::Example(_) => "part",
        Variant::Plain => "plain",
        Variant::Vxlan | Variant::HostGw => "kernel",
        Variant::Null => "null",
    }
}

'use strict';
(() => {
  // Everything that comes from the service is put in as text: names of routes are whatever the service says.

  const WINDOWS = [
    ['10s', '10 s'],
    ['1m', '1 min'],
    ['5m', '5 min'],
    ['', 'since start'],
  ];
  const KEPT_S = 300,
    SPARK_S = 180,
    STALE_MS = 5000,
    LONGEST_WAIT_S = 30;
  // Phases that are drawn, the heaviest; the table has them all.
  const RANGES = 12;
  const POOL_USE = 0.8,
    CACHE_HITS = 0.8,
    CACHE_LOOKUPS = 20;

  // Elements

  const $ = id => document.getElementById(id);
  const make =
    space =>
    (name, attributes = {}, ...children) => {
      const element = document.createElementNS(space, name);
      for (const [key, value] of Object.entries(attributes))
        if (value != null) element.setAttribute(key, value);
      element.append(...children);
      return element;
    };
  const el = make('http://www.w3.org/1999/xhtml');
  const svg = make('http://www.w3.org/2000/svg');
  const text = (node, value) => {
    if (node.textContent !== value) node.textContent = value;
  };
  // What cannot be seen, or turns the text around it, is written out.
  const visible = name =>
    String(name).replace(
      /[\u0000-\u001f\u007f-\u00a0\u00ad\u061c\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff]/g,
      c => `\\u{${c.charCodeAt(0).toString(16)}}`,
    );

  // Numbers: three digits and a unit, whatever the size

  const three = x => (x >= 99.95 ? x.toFixed(0) : x >= 9.995 ? x.toFixed(1) : x.toFixed(2));
  const scaled = (x, step, units, first = three) => {
    let unit = 0;
    while (unit < units.length - 1 && x >= step * 0.9995) {
      x /= step;
      unit++;
    }
    return [unit === 0 ? first(x) : three(x), units[unit]];
  };
  const none = ['–', ''];
  const duration = us =>
    us == null
      ? none
      : us >= 59.95e6
        ? us >= 3.6e9
          ? [three(us / 3.6e9), 'h']
          : [three(us / 6e7), 'min']
        : scaled(us, 1000, ['µs', 'ms', 's']);
  const count = n => (n == null ? none : scaled(n, 1000, ['', 'k', 'M', 'G', 'T'], x => x.toFixed(0)));
  const rate = x =>
    x == null
      ? none
      : x === 0
        ? ['0', '/s']
        : scaled(x, 1000, ['/s', 'k/s', 'M/s'], x => (x < 0.005 ? '<0.01' : three(x)));
  const bytes = n => (n == null ? none : scaled(n, 1024, ['B', 'KiB', 'MiB', 'GiB', 'TiB'], x => x.toFixed(0)));
  const percent = r =>
    r == null || Number.isNaN(r)
      ? none
      : r === 0
        ? ['0', '%']
        : r < 0.00005
          ? ['<0.01', '%']
          : [three(r * 100), '%'];
  const words = ([value, unit]) => (unit ? `${value} ${unit}` : value);
  const clock = ms => new Date(ms).toLocaleTimeString([], { hour12: false });
  const span = s =>
    s < 100
      ? `${Math.floor(s)} s`
      : s < 6000
        ? `${Math.floor(s / 60)} min`
        : s < 172800
          ? `${Math.floor(s / 3600)} h`
          : `${Math.floor(s / 86400)} d`;
  const sum = numbers => numbers.reduce((a, b) => a + b, 0);

  // What a route's row shows

  const ofTotal = (n, row) => (row.requests ? n / row.requests : null);
  const errors = row => row.outcomes.server_error + row.outcomes.panicked;
  const seconds = view => view.window_s ?? view.uptime_s;
  const latency = name => ({ value: row => row.latency[name], show: duration });
  const COLUMNS = [
    { id: 'route', label: 'Route', left: true, value: row => `${row.route} ${row.method}` },
    { id: 'spark', label: 'Rate, 3 min', hide: 'm1' },
    { id: 'rate', label: 'Rate', value: row => row.rate, show: rate },
    { id: 'in_flight', label: 'In flight', hide: 'm1', value: row => row.in_flight, show: count },
    {
      id: 'errors',
      label: 'Errors',
      value: row => ofTotal(errors(row), row),
      show: percent,
      mark: row => (errors(row) ? 'bad' : ''),
    },
    {
      id: 'limited',
      label: 'Limited',
      hide: 'm1',
      value: row => ofTotal(row.outcomes.limited, row),
      show: percent,
      mark: row => (row.outcomes.limited ? 'warn' : ''),
    },
    { id: 'bypassed', label: 'Bypassed', hide: 'm2', value: row => ofTotal(row.bypassed, row), show: percent },
    { id: 'p50', label: 'p50', hide: 'm0', ...latency('p50_us') },
    { id: 'p95', label: 'p95', hide: 'm2', ...latency('p95_us') },
    { id: 'p99', label: 'p99', ...latency('p99_us') },
    { id: 'max', label: 'Max', hide: 'm1', ...latency('max_us') },
  ];
  const NOTHING = {
    count: 0,
    mean_us: null,
    min_us: null,
    p50_us: null,
    p90_us: null,
    p95_us: null,
    p99_us: null,
    p999_us: null,
    max_us: null,
  };
  const idle = (method, route) => ({
    method,
    route,
    requests: 0,
    in_flight: 0,
    bypassed: 0,
    response_bytes: 0,
    latency: NOTHING,
    time_to_first_byte: NOTHING,
    limited_latency: NOTHING,
    failed_latency: NOTHING,
    outcomes: { ok: 0, client_error: 0, limited: 0, server_error: 0, cancelled: 0, panicked: 0 },
  });
  const keyOf = row => JSON.stringify([row.method, row.route]);

  // State

  const asked = new URLSearchParams(location.search).get('window') ?? '10s';
  const state = {
    window: WINDOWS.some(([name]) => name === asked) ? asked : '10s',
    sort: { id: 'rate', up: false },
    filter: '',
    open: null,
    paused: false,
    view: null,
    at: null,
    before: null,
  };
  const rows = new Map();
  const histories = new Map(WINDOWS.map(([name]) => [name, new Map()]));
  const address = (path, parameters = {}) => {
    const url = new URL(path, location.href);
    url.search = '';
    for (const [name, value] of Object.entries(parameters))
      if (value != null) url.searchParams.set(name, value);
    return url;
  };

  // The stream

  let source = null,
    timer = null,
    attempt = 0,
    lostAt = null,
    nextTry = null;

  function connect() {
    disconnect();
    source = new EventSource(address('perf/live', { window: state.window || null }));
    const asked = Date.now(),
      mine = source;
    mine.since = asked;
    mine.onmessage = event => {
      if (mine === source) receive(event.data);
    };
    // It lasts only so long, so that it holds up no service that shuts down.
    mine.addEventListener('renew', () => {
      if (mine === source) connect();
    });
    mine.onerror = () => {
      if (mine === source) lost();
    };
  }

  function disconnect() {
    clearTimeout(timer);
    nextTry = null;
    if (source) source.close();
    source = null;
  }

  function lost() {
    disconnect();
    lostAt ??= state.at ?? Date.now();
    const wait = Math.min(LONGEST_WAIT_S, 2 ** attempt++);
    nextTry = Date.now() + wait * 1000;
    timer = setTimeout(connect, wait * 1000);
    status();
  }

  function receive(data) {
    let view;
    try {
      view = JSON.parse(data);
      if (view.schema !== 'parallax.perf/1') throw new Error('another format');
    } catch {
      lost();
      return;
    }
    attempt = 0;
    lostAt = null;
    state.at = Date.now();
    remember(view);
    state.view = view;
    render();
    status();
  }

  function pause(paused) {
    state.paused = paused;
    $('pause').setAttribute('aria-pressed', paused);
    if (paused) {
      disconnect();
      lostAt = null;
    } else {
      attempt = 0;
      connect();
    }
    status();
  }

  function status() {
    const chip = $('state');
    const [kind, name] = state.paused
      ? ['paused', 'Paused']
      : lostAt != null
        ? ['lost', 'Stream lost']
        : state.at == null
          ? ['wait', 'Connecting']
          : ['live', 'Live'];
    chip.dataset.state = kind;
    text(chip, name);
    const old =
      state.at == null
        ? 'no figures yet'
        : `figures of ${clock(state.at)}, ${span((Date.now() - state.at) / 1000)} old`;
    const next =
      nextTry == null
        ? 'trying again'
        : `next try in ${Math.max(0, Math.ceil((nextTry - Date.now()) / 1000))} s`;
    text(
      $('age'),
      kind === 'live' ? covered() : kind === 'lost' ? `${old}; ${next}` : kind === 'paused' ? old : '',
    );
    text($('pause'), state.paused ? 'Resume' : 'Pause');
    document.title = `${kind === 'live' ? '' : `${name}: `}perf ${location.host}`;
  }

  function covered() {
    const view = state.view,
      window = WINDOWS.find(([name]) => name === state.window);
    if (view.window_s == null) return `over ${span(view.uptime_s)} since the start`;
    // Sampling begins with the first look at the figures.
    return (
      `over the last ${span(view.window_s)}` +
      (view.window_s < parseInt(window[1]) * (state.window.endsWith('m') ? 60 : 1) - 1
        ? ' (sampling began then)'
        : '')
    );
  }

  setInterval(() => {
    const heard = Math.max(state.at ?? 0, source?.since ?? 0);
    if (source && Date.now() - heard > STALE_MS) lost();
    else status();
  }, 1000);
  addEventListener('online', () => {
    if (nextTry != null) connect();
  });

  // The last minutes, as this page has seen them; before that, as the service remembers them

  // Its intervals are longer. Their figures stand at their ends, as do those of the windows.
  function recall(past) {
    const now = Date.now() / 1000;
    for (const [name, history] of histories)
      for (const row of past.routes) {
        const key = keyOf(row),
          seen = history.get(key) ?? [],
          first = seen[0]?.t ?? now;
        const earlier = past.intervals.map(([ago, length], i) => ({
          t: now - ago,
          length,
          rate: row.requests[i] / length,
          p50: name ? row.p50_us[i] : null,
          p99: name ? row.p99_us[i] : null,
        }));
        history.set(key, [...earlier.filter(point => point.t < first), ...seen]);
      }
  }

  function remember(view) {
    const history = histories.get(state.window),
      before = state.before;
    // The first event of a stream that was renewed may be the last one's again.
    if (before?.uptime_s === view.uptime_s) return;
    const since =
      before && view.window_s == null && before.window_s == null ? view.uptime_s - before.uptime_s : null;
    const earlier = since > 0 ? new Map(before.routes.map(row => [keyOf(row), row.requests])) : null;
    const t = state.at / 1000,
      seen = new Set();
    for (const row of view.routes) {
      const key = keyOf(row);
      seen.add(key);
      row.rate = seconds(view) > 0 ? row.requests / seconds(view) : null;
      const now =
        view.window_s != null ? row.rate : earlier ? (row.requests - (earlier.get(key) ?? 0)) / since : null;
      if (!history.has(key)) history.set(key, []);
      history.get(key).push({ t, rate: now, p50: row.latency.p50_us, p99: row.latency.p99_us });
      if (!rows.has(key)) rows.set(key, newRow(key, row.method, row.route));
      rows.get(key).data = row;
    }
    for (const [key, row] of rows)
      if (!seen.has(key)) {
        row.data = { ...idle(row.method, row.route), rate: 0 };
        if (history.has(key)) history.get(key).push({ t, rate: 0, p50: null, p99: null });
      }
    for (const points of history.values()) while (points.length && points[0].t < t - KEPT_S) points.shift();
    state.before = view;
  }

  // A line through points in time, broken where nothing was heard for some seconds or there is no figure.
  function path(points, x, y) {
    let d = '',
      last = null;
    for (const [t, value, length] of points) {
      if (value == null) {
        last = null;
        continue;
      }
      d += `${last == null || t > last ? 'M' : 'L'}${x(t).toFixed(1)} ${y(value).toFixed(1)}`;
      last = t + (length ? 2 * length : 3.5);
    }
    return d;
  }

  // The table

  function newRow(key, method, route) {
    const name = el('bdi', { class: 'name' }, visible(route));
    const open = el(
      'button',
      { type: 'button', 'aria-expanded': 'false', title: visible(route) },
      el('span', { class: 'method' }, visible(method)),
      name,
    );
    open.addEventListener('click', () => toggle(key));
    const line = svg('path');
    const cells = COLUMNS.map(column =>
      column.id === 'route'
        ? el('th', { scope: 'row', class: 'route' }, open)
        : column.id === 'spark'
          ? el(
              'td',
              { class: column.hide },
              svg(
                'svg',
                { class: 'spark', viewBox: '0 0 100 20', preserveAspectRatio: 'none', 'aria-hidden': 'true' },
                line,
              ),
            )
          : el('td', {}, el('span', { class: 'v' }), el('span', { class: 'u' })),
    );
    return { key, method, route, open, line, cells, data: null, element: el('tr', { class: 'row' }, ...cells) };
  }

  function figures(row) {
    COLUMNS.forEach((column, i) => {
      if (!column.show) return;
      const value = column.value(row.data),
        [v, u] = column.show(value),
        cell = row.cells[i];
      text(cell.firstChild, v);
      text(cell.lastChild, u);
      cell.className = `${column.hide ?? ''} ${column.mark?.(row.data) ?? ''} ${value ? '' : 'zero'}`;
    });
    row.element.classList.toggle('idle', !row.data.requests && !row.data.in_flight);
    const points = histories.get(state.window).get(row.key) ?? [],
      end = state.at / 1000;
    const top = Math.max(1e-9, ...points.map(point => point.rate ?? 0));
    row.line.setAttribute(
      'd',
      path(
        points.filter(point => point.t > end - SPARK_S).map(point => [point.t, point.rate, point.length]),
        t => 100 - ((end - t) / SPARK_S) * 100,
        v => 19 - (v / top) * 18,
      ),
    );
  }

  const collator = new Intl.Collator('en', { numeric: true });
  function order() {
    const column = COLUMNS.find(column => column.id === state.sort.id),
      direction = state.sort.up ? 1 : -1;
    const wanted = state.filter.trim().toLowerCase().split(/\s+/);
    const matches = row => {
      const name = `${row.method} ${row.route}`.toLowerCase();
      return wanted.every(word => name.includes(word));
    };
    return [...rows.values()].filter(matches).sort((a, b) => {
      const x = column.value(a.data),
        y = column.value(b.data);
      if (x == null || y == null) return (x == null) - (y == null) || collator.compare(a.route, b.route);
      return (
        direction * (typeof x === 'string' ? collator.compare(x, y) : x - y) ||
        collator.compare(a.route, b.route) ||
        collator.compare(a.method, b.method)
      );
    });
  }

  // Rows keep their places while somebody is about to click on one.
  function arrange(hold) {
    const body = $('rows');
    let shown = order();
    if (hold) {
      const places = new Map([...body.children].map((element, i) => [element, i]));
      shown = shown
        .map((row, i) => [places.get(row.element) ?? places.size + i, row])
        .sort((a, b) => a[0] - b[0])
        .map(([, row]) => row);
    }
    const elements = shown.flatMap(row =>
      row.key === state.open ? [row.element, detail.element] : [row.element],
    );
    const wanted = new Set(elements);
    for (const element of [...body.children]) if (!wanted.has(element)) element.remove();
    elements.forEach((element, i) => {
      if (body.children[i] !== element) body.insertBefore(element, body.children[i] ?? null);
    });
    text($('shown'), shown.length === rows.size ? `${rows.size}` : `${shown.length} of ${rows.size}`);
    const empty = $('none');
    empty.hidden = shown.length > 0;
    text(empty, rows.size ? 'No route matches the filter.' : 'No request has been recorded yet.');
  }

  for (const column of COLUMNS) {
    const size = column.id === 'route' ? 'col-route' : column.id === 'spark' ? 'col-spark' : 'col-n';
    const kind = `${size} ${column.hide ?? ''} ${column.left ? 'left' : ''}`;
    if (!column.value) {
      $('head').append(el('th', { scope: 'col', class: `${kind} plain left` }, column.label));
      continue;
    }
    const button = el('button', { type: 'button' }, column.label);
    button.addEventListener('click', () => {
      state.sort = { id: column.id, up: state.sort.id === column.id ? !state.sort.up : column.id === 'route' };
      sorted();
      arrange(false);
    });
    column.head = el('th', { scope: 'col', class: kind }, button);
    $('head').append(column.head);
  }
  function sorted() {
    for (const { id, head } of COLUMNS)
      if (head) {
        if (id === state.sort.id) head.setAttribute('aria-sort', state.sort.up ? 'ascending' : 'descending');
        else head.removeAttribute('aria-sort');
      }
  }
  sorted();

  // One route, opened

  const detail = {
    element: el('tr', { class: 'detail', id: 'detail' }),
    body: el('div', { class: 'panel' }),
    curve: null,
    fetched: 0,
    asking: false,
  };
  detail.cell = el('td', {}, detail.body);
  detail.element.append(detail.cell);
  // As wide as the columns that the window has room for.
  const stretch = () => {
    detail.cell.colSpan = [...$('head').children].filter(head => head.offsetParent).length || 1;
  };
  addEventListener('resize', stretch);
  stretch();
  const slots = Object.fromEntries(
    ['title', 'curve', 'time', 'phases', 'times'].map(name => [
      name,
      el('div', { class: name === 'curve' || name === 'time' ? null : 'wide' }),
    ]),
  );
  const closing = el('button', { type: 'button' }, 'Close');
  closing.addEventListener('click', () => toggle(state.open));
  detail.title = el(
    'p',
    { class: 'full' },
    el('span', {}, el('span', { class: 'method' }), ' ', el('bdi')),
    closing,
  );
  slots.title.append(detail.title);
  detail.body.append(...Object.values(slots));

  function toggle(key) {
    const was = rows.get(state.open);
    if (was) {
      was.open.setAttribute('aria-expanded', 'false');
      was.open.removeAttribute('aria-controls');
    }
    state.open = state.open === key ? null : key;
    const row = rows.get(state.open);
    if (row) {
      row.open.setAttribute('aria-expanded', 'true');
      row.open.setAttribute('aria-controls', 'detail');
      detail.curve = null;
      detail.fetched = 0;
      arrange(true);
      stretch();
      show(row);
    } else {
      arrange(true);
      was?.open.focus();
    }
  }

  function show(row) {
    const [method, name] = [detail.title.querySelector('.method'), detail.title.querySelector('bdi')];
    text(method, visible(row.method));
    text(name, visible(row.route));
    ask(row);
    W = Math.max(260, slots.curve.clientWidth || W);
    slots.curve.replaceChildren(percentiles(row));
    slots.time.replaceChildren(overTime(row));
    refill(slots.phases, whereTimeGoes(row.data));
    refill(slots.times, distributions(row.data));
  }

  // New figures in the place of old ones, scrolled and focused as those were.
  function refill(slot, nodes) {
    const old = [...slot.querySelectorAll('.scroll')],
      lefts = old.map(region => region.scrollLeft),
      focused = old.indexOf(document.activeElement);
    slot.replaceChildren(...nodes);
    slot.querySelectorAll('.scroll').forEach((region, i) => {
      region.scrollLeft = lefts[i] ?? 0;
      if (i === focused) region.focus({ preventScroll: true });
    });
  }

  // The curve is asked for while its route is open, every other second.
  async function ask(row) {
    if (detail.asking || (state.paused && detail.curve) || Date.now() - detail.fetched < 1900) return;
    detail.asking = true;
    detail.fetched = Date.now();
    const window = state.window;
    try {
      const url = address('perf/histogram', { method: row.method, route: row.route, window: window || null });
      const response = await fetch(url, { headers: { accept: 'application/json' } });
      const found = response.ok ? await response.json() : null;
      if (state.open === row.key && state.window === window) {
        detail.curve = found?.curve ?? null;
        slots.curve.replaceChildren(percentiles(row));
      }
    } catch {
      /* The stream says that the service is gone. */
    } finally {
      detail.asking = false;
    }
  }

  let W = 380;
  const H = 190,
    LEFT = 56,
    RIGHT = 16,
    TOP = 8,
    BOTTOM = 24;
  const chart = (label, ...children) =>
    svg('svg', { viewBox: `0 0 ${W} ${H}`, role: 'img', 'aria-label': label }, ...children);
  const note = words => svg('text', { class: 'empty', x: W / 2, y: H / 2, 'text-anchor': 'middle' }, words);
  const gridX = (x, label) => [
    svg('line', { class: 'grid', x1: x, x2: x, y1: TOP, y2: H - BOTTOM }),
    svg('text', { class: 'tick', x, y: H - 6, 'text-anchor': 'middle' }, label),
  ];
  const gridY = (y, label) => [
    svg('line', { class: 'grid', x1: LEFT, x2: W - RIGHT, y1: y, y2: y }),
    svg('text', { class: 'tick', x: LEFT - 5, y: y + 4, 'text-anchor': 'end' }, label),
  ];
  // A logarithmic axis from 0 to 1, with ticks at tens, and at twos and fives where they are few.
  function logScale(values) {
    const low = Math.min(...values),
      high = Math.max(...values);
    let from = Math.floor(Math.log10(low)),
      to = Math.ceil(Math.log10(high));
    if (to === from) to++;
    const steps = to - from > 2 ? [1] : [1, 2, 5],
      all = [];
    for (let e = from; e <= to; e++) for (const s of steps) all.push(s * 10 ** e);
    const bottom = Math.max(...all.filter(tick => tick <= low)),
      top = Math.min(...all.filter(tick => tick >= high));
    return {
      at: v => Math.log10(Math.max(v, bottom) / bottom) / (Math.log10(top / bottom) || 1),
      ticks: all
        .filter(tick => tick >= bottom && tick <= top)
        .map(tick => [tick, words(duration(tick)).replace(/\.0+(?= )/, '')]),
    };
  }
  function logAxis(values) {
    const { at, ticks } = logScale(values),
      y = v => H - BOTTOM - at(v) * (H - TOP - BOTTOM);
    return { y, grid: ticks.flatMap(([tick, label]) => gridY(y(tick), label)) };
  }

  function percentiles(row) {
    const caption = el(
      'figcaption',
      {},
      el('b', {}, 'Latency by percentile'),
      el('span', { class: 'soft' }, 'successes, each nine equally wide'),
    );
    const { min_us, p50_us, p90_us, p95_us, p99_us, p999_us } = row.data.latency;
    const known = [
      [0, min_us],
      [0.5, p50_us],
      [0.9, p90_us],
      [0.95, p95_us],
      [0.99, p99_us],
      [0.999, p999_us],
    ];
    const points = (detail.curve ?? known).filter(([q, us]) => q < 1 && us > 0);
    const label = `Latency by percentile: ${known
      .filter(([, us]) => us != null)
      .map(([q, us]) => `p${+(q * 100).toFixed(1)} ${words(duration(us))}`)
      .join(', ')}`;
    if (points.length < 2)
      return el(
        'figure',
        {},
        caption,
        chart('Latency by percentile: too few samples', note('too few samples')),
      );
    const nines = q => -Math.log10(1 - q),
      most = Math.max(1, nines(points.at(-1)[0]));
    const x = q => LEFT + (nines(q) / most) * (W - LEFT - RIGHT);
    const values = points.map(([, us]) => us),
      { y, grid } = logAxis(values);
    const marks = [
      [0, '0'],
      [0.5, 'p50'],
      [0.9, 'p90'],
      [0.99, 'p99'],
      [0.999, 'p99.9'],
      [0.9999, 'p99.99'],
      [0.99999, 'p99.999'],
    ];
    const line = points.map(([q, us], i) => `${i ? 'L' : 'M'}${x(q).toFixed(1)} ${y(us).toFixed(1)}`).join('');
    return el(
      'figure',
      {},
      caption,
      chart(
        label,
        ...grid,
        ...marks.filter(([q]) => nines(q) <= most + 1e-9).flatMap(([q, name]) => gridX(x(q), name)),
        svg('g', { class: 'k0' }, svg('path', { class: 'line', d: line })),
      ),
    );
  }

  function overTime(row) {
    const caption = el(
      'figcaption',
      {},
      el('b', {}, 'Latency over time'),
      el('span', { class: 'k0' }, el('i', { class: 'key' }), 'p99'),
      el('span', { class: 'k1' }, el('i', { class: 'key dash' }), 'p50'),
      el(
        'span',
        { class: 'soft' },
        state.window
          ? `each over ${WINDOWS.find(([name]) => name === state.window)[1]}`
          : 'each since the start',
      ),
    );
    // What the service remembers has no percentiles since the start.
    const all = histories.get(state.window).get(row.key) ?? [],
      end = state.at / 1000;
    const points = state.window ? all : all.filter(point => !point.length);
    if (points[0]?.length) {
      caption.append(el('span', { class: 'soft' }, 'before this page was opened, over 6 or 30 s'));
    }
    const values = points.flatMap(point => [point.p50, point.p99]).filter(us => us > 0);
    if (!values.length)
      return el('figure', {}, caption, chart('Latency over time: too few samples', note('too few samples')));
    const length = Math.min(KEPT_S, Math.max(30, end - points[0].t));
    const x = t => W - RIGHT - ((end - t) / length) * (W - LEFT - RIGHT),
      { y, grid } = logAxis(values);
    const step = [10, 30, 60].find(s => length / s <= 6) ?? 60,
      marks = [];
    for (let s = 0; s <= length; s += step) marks.push(...gridX(x(end - s), s ? `−${s} s` : 'now'));
    const line = (kind, of) =>
      svg(
        'g',
        { class: kind },
        svg('path', {
          class: kind === 'k1' ? 'line dash' : 'line',
          d: path(
            points.map(point => [point.t, of(point), point.length]),
            x,
            y,
          ),
        }),
      );
    const last = points.at(-1);
    return el(
      'figure',
      {},
      caption,
      chart(
        `Latency over time, now p50 ${words(duration(last.p50))} and p99 ${words(duration(last.p99))}`,
        ...grid,
        ...marks,
        line('k0', p => p.p99),
        line('k1', p => p.p50),
      ),
    );
  }

  const cell = ([v, u], kind) =>
    el('td', { class: kind }, el('span', { class: 'v' }, v), el('span', { class: 'u' }, u));
  function listing(label, columns, entries) {
    return el(
      'div',
      { class: 'scroll', role: 'region', 'aria-label': label, tabindex: 0 },
      el(
        'table',
        { class: 'figures' },
        el(
          'thead',
          {},
          el('tr', {}, ...columns.map((name, i) => el('th', { scope: 'col', class: i ? null : 'left' }, name))),
        ),
        el('tbody', {}, ...entries),
      ),
    );
  }

  // The last name is `handler`: what is in no phase of its own.
  const byWeight = phases =>
    Object.entries(phases)
      .map(([name, times]) => ({ name, times, total: times.count * (times.mean_us ?? 0) }))
      .sort((a, b) => (a.name === 'handler') - (b.name === 'handler') || b.total - a.total);
  const shade = (phase, i) => (phase.name === 'handler' ? 'rest' : `p${Math.min(i, 7)}`);

  // From each phase's median to its 99th percentile, beside the route's own. What is added up is means alone.
  // A phase that takes less than a thousandth of the longest, even in the tail, would squeeze the others.
  function ranges(list, latency) {
    const tail = times => times.p99_us ?? times.p50_us,
      least = Math.max(...list.map(({ times }) => tail(times) ?? 0)) / 1000;
    const lines = [
      { name: 'whole request', times: latency, kind: 'whole' },
      ...list.map((phase, i) => ({ ...phase, kind: shade(phase, i) })),
    ]
      .filter(({ times }) => times.p50_us > 0 && tail(times) >= least)
      .slice(0, 1 + RANGES);
    if (lines.length < 2) return [];
    const wide = Math.max(260, slots.phases.clientWidth || W),
      gutter = Math.min(180, wide * 0.32);
    const top = 16,
      step = 22,
      bottom = top + lines.length * step;
    const { at, ticks } = logScale(lines.flatMap(({ times }) => [Math.max(times.p50_us, least), tail(times)]));
    const x = us => gutter + at(us) * (wide - gutter - RIGHT);
    const upright = (us, kind) => svg('line', { class: kind, x1: x(us), x2: x(us), y1: top, y2: bottom });
    const tick = ([us, label]) => [
      upright(us, 'grid'),
      svg('text', { class: 'tick', x: x(us), y: bottom + 15, 'text-anchor': 'middle' }, label),
    ];
    // Where there is no room for every label, those of tens.
    const room = ticks.length * 46 < wide - gutter ? ticks : ticks.filter(([us]) => Math.log10(us) % 1 === 0);
    const own = [
      ['p50_us', 'p50', 'end', -3, 'own dash'],
      ['p99_us', 'p99', 'start', 3, 'own'],
    ]
      .filter(([key]) => latency[key] > 0)
      .flatMap(([key, name, anchor, aside, kind]) => [
        upright(latency[key], kind),
        svg('text', { class: 'tick', x: x(latency[key]) + aside, y: 11, 'text-anchor': anchor }, name),
      ]);
    const most = Math.floor(gutter / 6.6),
      cut = name => (name.length > most ? `${name.slice(0, most - 1)}…` : name);
    const marks = lines.flatMap(({ name, times, kind }, i) => {
      const y = top + (i + 0.5) * step,
        from = x(times.p50_us),
        to = x(tail(times));
      const mean =
        times.mean_us > 0
          ? [svg('circle', { class: `mean ${kind}`, cx: x(times.mean_us), cy: y, r: 3.5 })]
          : [];
      return [
        svg('text', { class: 'label', x: 0, y: y + 4 }, svg('title', {}, visible(name)), cut(visible(name))),
        svg('line', { class: `range ${kind}`, x1: from - 1, x2: Math.max(to, from) + 1, y1: y, y2: y }),
        ...mean,
      ];
    });
    const said = lines
      .map(
        ({ name, times }) =>
          `${visible(name)} ${words(duration(times.p50_us))} to ${words(duration(times.p99_us))}`,
      )
      .join(', ');
    return [
      el(
        'figure',
        {},
        el(
          'figcaption',
          {},
          el('b', {}, 'At the median and in the tail'),
          el('span', { class: 'soft' }, 'line: p50 to p99 of those that were in the phase'),
          el('span', { class: 'soft' }, 'dot: their mean'),
          el('span', { class: 'soft' }, 'upright: p50 and p99 of whole requests, successes'),
        ),
        svg(
          'svg',
          { viewBox: `0 0 ${wide} ${bottom + 20}`, role: 'img', 'aria-label': `From p50 to p99: ${said}` },
          ...room.flatMap(tick),
          ...own,
          ...marks,
        ),
      ),
    ];
  }

  function whereTimeGoes(row) {
    const parts = [
      ['Where the time goes', row.phases, row.overlap, row.latency],
      ['Where the time of load past the limiter goes', row.load?.phases, row.load?.overlap, row.load?.latency],
    ];
    const found = parts.filter(([, phases]) => phases && Object.keys(phases).length);
    if (!found.length)
      return [
        el('p', { class: 'note' }, 'No phase of this route was recorded: nothing watched was waited for.'),
      ];
    return found.flatMap(([title, phases, overlap, latency]) => {
      const list = byWeight(phases),
        whole = sum(list.map(phase => phase.total)) || 1,
        requests = phases.handler?.count ?? Math.max(...list.map(phase => phase.times.count));
      const bar = el('div', {
        class: 'share',
        role: 'img',
        'aria-label': list
          .map(phase => `${visible(phase.name)} ${words(percent(phase.total / whole))}`)
          .join(', '),
      });
      list.forEach((phase, i) => {
        const piece = el('i', {
          class: `${shade(phase, i)} ${phase.total / whole < 0.01 ? 'thin' : ''}`,
          title: `${visible(phase.name)}: ${words(percent(phase.total / whole))}`,
        });
        piece.style.flexGrow = phase.total / whole;
        bar.append(piece);
      });
      const rows = list.map((phase, i) =>
        el(
          'tr',
          {},
          el(
            'th',
            { scope: 'row' },
            el('i', { class: `sw ${shade(phase, i)}` }),
            el('bdi', {}, visible(phase.name)),
          ),
          cell(percent(phase.total / whole)),
          cell(duration(requests ? phase.total / requests : null)),
          cell(count(phase.times.count)),
          ...['mean_us', 'p50_us', 'p99_us', 'max_us'].map(name => cell(duration(phase.times[name]))),
        ),
      );
      const said = overlap
        ? `${words(count(overlap.requests))} requests were in several phases at once: their parts add up to ` +
          `${words(duration(overlap.total_us / overlap.requests))} more than their time, on average.`
        : null;
      const mean = el(
        'figcaption',
        {},
        el('b', {}, 'On average'),
        el(
          'span',
          { class: 'soft' },
          `${words(duration(requests ? whole / requests : null))} a request, however it ended`,
        ),
      );
      return [
        el('h3', {}, title),
        el('figure', {}, mean, bar),
        ...ranges(list, latency),
        listing(title, ['phase', 'share', 'per request', 'requests', 'mean', 'p50', 'p99', 'max'], rows),
        el(
          'p',
          { class: 'note' },
          `Over the ${words(count(requests))} requests that were in any phase, however they ended; the other ` +
            'columns count only those that were in the phase at hand. Phases are slow in different requests: ' +
            `their percentiles do not add up to those of the whole. ${said ?? ''}`,
        ),
      ];
    });
  }

  function distributions(row) {
    const line = (name, times, apart) =>
      el(
        'tr',
        { class: apart ? 'apart' : null },
        el('th', { scope: 'row' }, name),
        cell(count(times.count)),
        ...['mean_us', 'min_us', 'p50_us', 'p90_us', 'p95_us', 'p99_us', 'p999_us', 'max_us'].map(key =>
          cell(duration(times[key])),
        ),
      );
    const kinds = (of, prefix, apart) =>
      [
        ['successes', of.latency],
        ['to the first byte', of.time_to_first_byte],
        ['limited', of.limited_latency],
        ['failed', of.failed_latency],
      ]
        .filter(([, times], i) => times.count || (!i && !apart))
        .map(([name, times], i) => line(prefix + name, times, apart && !i));
    const streams = (of, prefix) =>
      of.streams ? [line(`${prefix}event streams (${of.streams.open} open)`, of.streams.duration)] : [];
    const outcomes = of =>
      Object.entries(of.outcomes)
        .filter(([, n]) => n)
        .map(([name, n]) => `${n.toLocaleString('en')} ${name.replace('_', ' ')}`)
        .join(', ') || 'none';
    const load = row.load ? [...kinds(row.load, 'load: ', true), ...streams(row.load, 'load: ')] : [];
    const limiter = row.limiter
      ? ` Limiter: ${row.limiter.admitted.toLocaleString('en')} admitted, ` +
        `${row.limiter.limited.toLocaleString('en')} limited, ${row.bypassed.toLocaleString('en')} bypassed.`
      : '';
    return [
      el('h3', {}, 'All times'),
      listing(
        'All times',
        ['', 'requests', 'mean', 'min', 'p50', 'p90', 'p95', 'p99', 'p99.9', 'max'],
        [...kinds(row, ''), ...streams(row, ''), ...load],
      ),
      el(
        'p',
        { class: 'note' },
        `Outcomes: ${outcomes(row)}.` +
          (row.load ? ` Of these, load past the limiter: ${outcomes(row.load)}.` : '') +
          ` Bodies: ${words(bytes(row.response_bytes))}.${limiter}`,
      ),
    ];
  }

  // Everything else

  function tiles(place, list) {
    const wanted = list.filter(Boolean);
    while (place.children.length > wanted.length) place.lastChild.remove();
    wanted.forEach(([name, [v, u], kind], i) => {
      if (!place.children[i])
        place.append(
          el('div', {}, el('dt'), el('dd', {}, el('span', { class: 'v' }), el('span', { class: 'u' }))),
        );
      const tile = place.children[i],
        [dt, dd] = tile.children;
      tile.className = kind ?? '';
      text(dt, name);
      text(dd.firstChild, v);
      text(dd.lastChild, u);
    });
  }

  // Keeps cards of the same name, so that they do not flicker.
  function cards(id, list, draw) {
    $(`${id}-section`).hidden = !list.length;
    const place = $(id);
    while (place.children.length > list.length) place.lastChild.remove();
    list.forEach((item, i) => {
      if (!place.children[i])
        place.append(
          el(
            'div',
            { class: 'card' },
            el('h3', {}, el('bdi'), el('span')),
            el('div', { class: 'meter' }, el('i')),
            el('dl', { class: 'pairs' }),
          ),
        );
      const card = place.children[i],
        { name, aside, alarm, ratio, pairs } = draw(item);
      const [title, note] = card.firstChild.children;
      card.className = alarm ? 'card warn' : 'card';
      text(title, visible(name));
      text(note, alarm ?? aside);
      note.className = alarm ? 'alarm' : 'soft';
      const meter = card.children[1];
      meter.hidden = ratio == null;
      meter.firstChild.style.width = `${Math.min(1, ratio ?? 0) * 100}%`;
      tiles(card.lastChild, pairs);
    });
  }

  const poolUse = pool => (pool.max ? pool.in_use / pool.max : null);
  const hitsMatter = cache => cache.hits + cache.misses >= CACHE_LOOKUPS && cache.hit_ratio < CACHE_HITS;

  function drawPool(pool) {
    const use = poolUse(pool),
      full = use > POOL_USE;
    return {
      name: pool.name,
      aside: visible(pool.kind),
      ratio: use,
      alarm: full ? `⚠ ${words(percent(use))} in use` : null,
      pairs: [
        ['in use of ' + (pool.max || 'unknown'), [`${pool.in_use}`, ''], full ? 'warn' : ''],
        ['idle', [`${pool.idle}`, '']],
        ['waiting', [`${pool.waiting}`, ''], pool.waiting ? 'warn' : ''],
        ['timeouts', count(pool.timeouts), pool.timeouts ? 'bad' : ''],
        ['acquired', count(pool.acquired)],
        pool.failed || pool.cancelled ? ['failed, cancelled', [`${pool.failed}, ${pool.cancelled}`, '']] : null,
        ['wait p50', duration(pool.wait.p50_us)],
        ['wait p95', duration(pool.wait.p95_us)],
        ['wait p99', duration(pool.wait.p99_us)],
        ['wait max', duration(pool.wait.max_us)],
        ['hold p50', duration(pool.hold.p50_us)],
        ['hold p99', duration(pool.hold.p99_us)],
      ],
    };
  }

  function drawCache(cache) {
    const poor = hitsMatter(cache);
    return {
      name: cache.name,
      aside: 'cache',
      ratio: cache.hit_ratio,
      alarm: poor ? `⚠ ${words(percent(cache.hit_ratio))} hits` : null,
      pairs: [
        ['hit ratio', percent(cache.hit_ratio), poor ? 'warn' : ''],
        ['hits', count(cache.hits)],
        ['misses', count(cache.misses)],
      ],
    };
  }

  function warnings(view) {
    const found = [];
    for (const pool of view.pools ?? []) {
      if (poolUse(pool) > POOL_USE)
        found.push([
          'bad',
          `Pool ${visible(pool.name)}: ${pool.in_use} of ${pool.max} connections in use ` +
            `(${words(percent(poolUse(pool)))})${pool.waiting ? `, ${pool.waiting} waiting` : ''}.`,
        ]);
      if (pool.timeouts)
        found.push(['bad', `Pool ${visible(pool.name)}: ${words(count(pool.timeouts))} timeouts.`]);
    }
    for (const cache of view.caches ?? [])
      if (hitsMatter(cache))
        found.push(['', `Cache ${visible(cache.name)}: ${words(percent(cache.hit_ratio))} hits.`]);
    const list = $('warnings');
    list.hidden = !found.length;
    while (list.children.length > found.length) list.lastChild.remove();
    found.forEach(([kind, words], i) => {
      if (!list.children[i]) list.append(el('li'));
      list.children[i].className = kind;
      text(list.children[i], words);
    });
  }

  const refused = limiter => Object.entries(limiter.refused_tokens ?? {});

  function render() {
    const view = state.view;
    const total = of => sum(view.routes.map(of)),
      requests = total(row => row.requests),
      failed = total(errors),
      limited = total(row => row.outcomes.limited);
    const { process, runtime } = view,
      long = seconds(view);
    warnings(view);
    tiles($('tiles'), [
      ['requests', rate(long > 0 ? requests / long : null)],
      ['in flight', count(total(row => row.in_flight))],
      ['errors', percent(requests ? failed / requests : 0), failed ? 'bad' : ''],
      ['limited', percent(requests ? limited / requests : 0), limited ? 'warn' : ''],
      process.cpu_s != null && view.window_s > 0
        ? ['processors', [three(process.cpu_s / long), 'busy']]
        : process.cpu_s != null
          ? ['processor time', duration(process.cpu_s * 1e6)]
          : null,
      process.rss_bytes != null ? ['memory', bytes(process.rss_bytes)] : null,
      runtime
        ? [
            'workers busy',
            [percent(runtime.busy_ratio)[0], `${percent(runtime.busy_ratio)[1]} of ${runtime.workers}`],
            runtime.busy_ratio > 0.9 ? 'warn' : '',
          ]
        : null,
      runtime ? ['queued tasks', count(runtime.global_queue_depth)] : null,
      runtime ? ['tasks', count(runtime.alive_tasks)] : null,
      ['up', (up => [up.split(' ')[0], up.split(' ')[1]])(span(view.uptime_s))],
    ]);
    for (const row of rows.values()) figures(row);
    const body = $('rows');
    arrange(body.matches(':hover') || body.contains(document.activeElement));
    const open = rows.get(state.open);
    if (open) show(open);
    cards('pools', view.pools ?? [], drawPool);
    cards('caches', view.caches ?? [], drawCache);
    $('limiter-section').hidden = !view.limiter;
    if (view.limiter)
      tiles($('limiter'), [
        ['admitted', count(view.limiter.admitted)],
        ['limited', count(view.limiter.limited), view.limiter.limited ? 'warn' : ''],
        ['bypassed', count(view.limiter.bypassed)],
        ...refused(view.limiter).map(([why, n]) => [
          `tokens ${why.replaceAll('_', ' ')}`,
          count(n),
          n ? 'bad' : '',
        ]),
      ]);
    const elsewhere = Object.entries(view.elsewhere ?? {});
    $('elsewhere-section').hidden = !elsewhere.length;
    if (elsewhere.length)
      $('elsewhere').replaceChildren(
        el(
          'table',
          { class: 'figures' },
          el(
            'thead',
            {},
            el(
              'tr',
              {},
              ...['phase', 'times', 'mean', 'p50', 'p99', 'max'].map((name, i) =>
                el('th', { scope: 'col', class: i ? null : 'left' }, name),
              ),
            ),
          ),
          el(
            'tbody',
            {},
            ...elsewhere.map(([name, times]) =>
              el(
                'tr',
                {},
                el('th', { scope: 'row' }, el('bdi', {}, visible(name))),
                cell(count(times.count)),
                ...['mean_us', 'p50_us', 'p99_us', 'max_us'].map(key => cell(duration(times[key]))),
              ),
            ),
          ),
        ),
      );
  }

  // Controls

  for (const [name, label] of WINDOWS) {
    const button = el(
      'button',
      { type: 'button', 'aria-pressed': name === state.window, 'data-window': name },
      label,
    );
    button.addEventListener('click', () => {
      for (const other of $('windows').children) other.setAttribute('aria-pressed', other === button);
      state.window = name;
      state.before = null;
      detail.curve = null;
      detail.fetched = 0;
      // Figures of another window have to be asked for, paused or not.
      pause(false);
    });
    $('windows').append(button);
  }
  $('pause').addEventListener('click', () => pause(!state.paused));
  $('filter').addEventListener('input', event => {
    state.filter = event.target.value;
    arrange(false);
  });
  document.addEventListener('keydown', event => {
    const writing = event.target.matches('input');
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === 'Escape') {
      if (writing && state.filter) {
        $('filter').value = state.filter = '';
        arrange(false);
      } else if (writing) event.target.blur();
      else if (state.open) toggle(state.open);
    } else if (!writing && event.key === 'p') pause(!state.paused);
    else if (!writing && event.key === '/') {
      $('filter').focus();
      event.preventDefault();
    }
  });
  text($('host'), location.host);

  // Which routes there are, also those that nobody asks for at the moment, and their past.
  const read = path =>
    fetch(address(path), { headers: { accept: 'application/json' } }).then(found => found.json());
  read('perf/history')
    .then(past => {
      recall(past);
      if (state.view) render();
    })
    .catch(() => {});
  read('perf')
    .then(view => {
      for (const row of view.routes) {
        const key = keyOf(row);
        if (rows.has(key)) continue;
        rows.set(key, newRow(key, row.method, row.route));
        rows.get(key).data = { ...idle(row.method, row.route), rate: 0 };
      }
      if (state.view) render();
    })
    .catch(() => {});
  connect();
})();

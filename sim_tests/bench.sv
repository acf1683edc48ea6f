// Replays beats into a unit and records every cycle of its output, a window of cycles at a time.
//
// Python fills `beats`, `offer`, `accept`, `patient` and `words` before a window, and reads
// `record` after it, when `window_done` changes: one wake-up a window instead of one a cycle.
// A window has 2**WINDOW_BITS cycles; the beats given for it are as many as it could take.
module bench #(
    parameter IN_BYTES = 1,     // of tdata
    parameter OUT_BYTES = 1,
    parameter WRITE_BYTES = 1,
    parameter WINDOW_BITS = 7
) (
    input wire aclk  /*verilator public_flat_rw*/
);
    localparam IN_BITS = 9 * IN_BYTES + 1;    // tlast, tkeep, tdata
    localparam OUT_BITS = 9 * OUT_BYTES + 1;
    localparam RECORD_BITS = OUT_BITS + 4;
    localparam WINDOW = 1 << WINDOW_BITS;

    reg aresetn  /*verilator public_flat_rw*/ = 1'b0;

    /*verilator tracing_off*/
    reg [WINDOW*IN_BITS-1:0] beats  /*verilator public_flat_rw*/ = 0;
    reg [15:0] beat_count  /*verilator public_flat_rw*/ = 0;
    reg [WINDOW*WRITE_BYTES*8-1:0] words  /*verilator public_flat_rw*/ = 0;
    reg [15:0] word_count  /*verilator public_flat_rw*/ = 0;
    reg [WINDOW-1:0] offer  /*verilator public_flat_rw*/ = 0;    // in this cycle a new beat is offered
    reg [WINDOW-1:0] accept  /*verilator public_flat_rw*/ = 0;   // in this cycle a result is taken
    reg [WINDOW-1:0] patient  /*verilator public_flat_rw*/ = 0;  // ... but ready waits for valid
    reg [WINDOW*RECORD_BITS-1:0] record  /*verilator public_flat_rw*/ = 0;
    reg window_done  /*verilator public_flat_rw*/ = 1'b0;
    reg [WINDOW_BITS-1:0] step = 0;
    reg [15:0] beat = 0, word = 0;
    /*verilator tracing_on*/

    reg [31:0] cycle = 0;
    reg holding = 1'b0;  // a beat that was offered stays until it is taken

    wire in_valid = aresetn && beat < beat_count && (holding || offer[step]);
    wire in_ready, in_last;
    wire [IN_BYTES-1:0] in_keep;
    wire [IN_BYTES*8-1:0] in_data;
    assign {in_last, in_keep, in_data} = beats[beat*IN_BITS+:IN_BITS];

    wire out_valid, out_last;
    wire [OUT_BYTES-1:0] out_keep;
    wire [OUT_BYTES*8-1:0] out_data;
`ifdef ALWAYS_READY
    wire out_ready = 1'b1;  // a unit whose results cannot wait
`else
    wire out_ready = accept[step] && (out_valid || !patient[step]);
`endif

    wire write_valid = aresetn && word < word_count;
    wire [WRITE_BYTES*8-1:0] write_data = words[word*WRITE_BYTES*8+:WRITE_BYTES*8];
    wire write_ready;

    `UNIT dut (
        .aclk(aclk),
        .aresetn(aresetn),
        .s_axis_tdata(in_data),
        .s_axis_tkeep(in_keep),
        .s_axis_tlast(in_last),
        .s_axis_tvalid(in_valid),
        .s_axis_tready(in_ready),
`ifdef LOADABLE
        .s_axis_write_tdata(write_data),
        .s_axis_write_tvalid(write_valid),
        .s_axis_write_tready(write_ready),
`endif
        .m_axis_tdata(out_data),
        .m_axis_tkeep(out_keep),
        .m_axis_tlast(out_last),
        .m_axis_tvalid(out_valid),
        .m_axis_tready(out_ready)
    );
`ifndef LOADABLE
    assign write_ready = 1'b1;
`endif

    wire window_ends = &step;

    always @(posedge aclk) begin
        if (aresetn) begin
            record[step*RECORD_BITS+:RECORD_BITS] <= {
                write_valid & write_ready, in_valid & in_ready, out_valid, out_ready, out_last, out_keep, out_data
            };
            cycle <= cycle + 1;
            holding <= in_valid & !in_ready;
            step <= step + 1'b1;
            beat <= window_ends ? 0 : beat + {15'b0, in_valid & in_ready};
            word <= window_ends ? 0 : word + {15'b0, write_valid & write_ready};
            window_done <= window_done ^ window_ends;
        end else holding <= 1'b0;
    end

`ifdef WAVEFORM
    // What should come, for the eye: the next beat of expected.hex, and whether what is offered differs from it.
    reg expecting = 1'b0;
    reg [OUT_BITS-1:0] expected_beat = 0, next_beat;
    wire expected_last;
    wire [OUT_BYTES-1:0] expected_keep;
    wire [OUT_BYTES*8-1:0] expected_data;
    assign {expected_last, expected_keep, expected_data} = expected_beat;
    reg [OUT_BYTES*8-1:0] kept_bits;
    always @*
        for (integer place = 0; place < OUT_BYTES; place = place + 1) kept_bits[8*place+:8] = {8{expected_keep[place]}};
    wire differs = out_valid && (!expecting || out_last != expected_last || out_keep != expected_keep
                                 || ((out_data ^ expected_data) & kept_bits) != 0);

    reg [31:0] waveform_from = 0, waveform_to = 0;
    integer expected_file, start_file;
    initial begin
        if (!$value$plusargs("waveform_from=%d", waveform_from)) waveform_from = 0;
        if (!$value$plusargs("waveform_to=%d", waveform_to)) waveform_to = 0;
        expected_file = $fopen("expected.hex", "r");
        expecting = $fscanf(expected_file, "%h", next_beat) == 1;
        expected_beat = next_beat;
    end
    always @(posedge aclk)
        if (aresetn) begin
            if (out_valid && out_ready) begin
                expecting <= $fscanf(expected_file, "%h", next_beat) == 1;
                expected_beat <= next_beat;
            end
            if (cycle == waveform_from) begin
                start_file = $fopen("waveform_start.txt", "w");
                $fwrite(start_file, "%0d\n", $time);
                $fclose(start_file);
                $dumpfile(`WAVEFORM);
                $dumpvars;
            end
            if (cycle == waveform_to) $finish;
        end
`endif
endmodule

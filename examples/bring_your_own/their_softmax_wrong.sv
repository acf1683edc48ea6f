// As their_softmax.sv, with a mistake that most rows hide: hwsim cosim finds it.
//
// A row is read into a memory; then the exponentials are summed; then each element becomes its code. The exponential
// of a score d steps below the maximum is i-exp: (r * (r + b) + c) << (FRACTION_BITS - d / -x0), r = -(d % -x0).
module their_softmax #(
    parameter int ROW = 64,            // longest row
    parameter int FRACTION_BITS = 16,
    parameter int SCORE_BITS = 8,
    parameter int CODE_BITS = 4
) (
    input  logic                  clk,
    input  logic                  rst,      // asynchronous, active high
    // constants: 0 is x0, 1 is b, 2 is c
    input  logic                  cfg_write,
    input  logic [1:0]            cfg_address,
    input  logic [31:0]           cfg_data,
    // scores
    input  logic [SCORE_BITS-1:0] in_score,
    input  logic                  in_valid,
    input  logic                  in_last,
    output logic                  in_ready,
    // codes; the one after the last code stands for zero
    output logic [CODE_BITS:0]    out_code,
    output logic                  out_valid,
    output logic                  out_last,
    input  logic                  out_ready
);
    typedef enum logic [1:0] {READ, SUM, GIVE} state_t;
    state_t state;

    logic signed [31:0] x0;
    logic [31:0] b, c;
    always_ff @(posedge clk)
        if (cfg_write)
            case (cfg_address)
                2'd0: x0 <= cfg_data;
                2'd1: b <= cfg_data;
                default: c <= cfg_data;
            endcase

    logic [SCORE_BITS-1:0] scores[ROW];
    logic [SCORE_BITS-1:0] maximum;
    logic [63:0] total;
    int unsigned length, place;

    function automatic logic [63:0] exponential(input logic [SCORE_BITS-1:0] below);
        longint step = -longint'(x0);
        longint d = longint'({1'b0, below});
        longint r;
        if (d > FRACTION_BITS * step) d = FRACTION_BITS * step;
        r = -(d % step);
        return (r * (r + longint'({1'b0, b})) + longint'({1'b0, c})) << (FRACTION_BITS - d / step);
    endfunction

    function automatic logic [CODE_BITS:0] code_of(input logic [63:0] e);
        logic [63:0] ratio;
        int octave = 0;
        if (e == 0) return 1 << CODE_BITS;
        ratio = total / e;
        // The ratio is cut off here where it should go to the nearest integer.
        for (int i = 0; i < 64; i++) if (ratio[i]) octave = i;
        if (octave > 0 && ratio[octave-1]) octave = octave + 1;  // the binary logarithm, rounded at 1.5
        return octave >= (1 << CODE_BITS) ? 1 << CODE_BITS : (CODE_BITS + 1)'(octave);
    endfunction

    assign in_ready = state == READ;
    assign out_valid = state == GIVE;
    assign out_last = place + 1 == length;
    assign out_code = code_of(exponential(maximum - scores[place]));

    always_ff @(posedge clk or posedge rst)
        if (rst) begin
            state <= READ;
            length <= 0;
            place <= 0;
            maximum <= 0;
            total <= 0;
        end else
            case (state)
                READ:
                if (in_valid) begin
                    scores[length] <= in_score;
                    length <= length + 1;
                    if (in_score > maximum) maximum <= in_score;
                    if (in_last) state <= SUM;
                end
                SUM: begin
                    total <= total + exponential(maximum - scores[place]);
                    place <= out_last ? 0 : place + 1;
                    if (out_last) state <= GIVE;
                end
                default:
                if (out_ready) begin
                    place <= out_last ? 0 : place + 1;
                    if (out_last) begin
                        state <= READ;
                        length <= 0;
                        maximum <= 0;
                        total <= 0;
                    end
                end
            endcase
endmodule
